// The shipped workflows: what is on them and where. build.mjs makes them on a real page.

const PROMPT = "two red circles left of a blue star and three yellow triangles";
const SMALL = { steps: 16, guidance: 2.5, width: 64, height: 64 };
const FLUX = { steps: 28, guidance: 3.5, width: 1024, height: 1024 };

const note = (text, height = 220) => ({ type: "MarkdownNote", widgets: { first: text }, height, title: "Read me" });

function sources({ model, kind = "shapes", prompt = PROMPT, readme }) {
  return {
    width: 360,
    nodes: {
      note: readme,
      model: { type: "ReflectLoadModel", widgets: { model } },
      judge: { type: "ReflectLoadJudge", widgets: { kind } },
      prompt: { type: "PrimitiveStringMultiline", title: "Prompt", widgets: { value: prompt }, height: 140 },
    },
  };
}

export const layouts = {};

layouts.quickstart = {
  columns: [
    sources({
      model: "shapes-flux",
      readme: note("## Draw, look, be told, draw again\n\nPress **Run**. The bundled model draws two pictures, the judge "
        + "scores them, the reflector says what is wrong with each, and the model draws them again as it is told, until "
        + "the judge accepts or six rounds are drawn.\n\nChange the prompt: circles, squares, triangles and stars in "
        + "eight colours, such as *a green star above two red squares*.", 300),
    }),
    {
      width: 340,
      nodes: {
        start: { type: "ReflectLoopStart" },
        sample: { type: "ReflectSample", widgets: { seed: 0, candidates: 2, ...SMALL } },
        shown: { type: "PreviewImage", title: "Each round", height: 300 },
      },
    },
    { width: 300, nodes: { verifier: { type: "ReflectVerifier" }, reflector: { type: "ReflectReflector", height: 240 } } },
    { width: 320, nodes: { controller: { type: "ReflectLoopController" } } },
    {
      width: 460,
      nodes: {
        save: { type: "SaveImage", title: "The answer", widgets: { filename_prefix: "reflect" }, height: 320 },
        report: { type: "PreviewAny", title: "Report", height: 220 },
      },
    },
    { width: 620, nodes: { tree: { type: "ReflectShowRun", height: 640 } } },
  ],
  links: [
    ["model", "model", "sample", "reflect_model"],
    ["prompt", "STRING", "sample", "prompt"],
    ["prompt", "STRING", "verifier", "prompt"],
    ["prompt", "STRING", "reflector", "prompt"],
    ["judge", "judge", "verifier", "judge"],
    ["judge", "judge", "reflector", "judge"],
    ["start", "run", "sample", "run_so_far"],
    ["sample", "images", "shown", "images"],
    ["sample", "run", "verifier", "run_in"],
    ["verifier", "run", "reflector", "run_in"],
    ["start", "flow", "controller", "flow"],
    ["verifier", "run", "controller", "run_in"],
    ["reflector", "run", "controller", "next_run"],
    ["controller", "image", "save", "images"],
    ["controller", "report", "report", "source"],
    ["controller", "run", "tree", "run_in"],
  ],
  groups: [
    { title: "What to draw, who draws, who judges", around: ["note", "model", "judge", "prompt"], colour: "#3f789e" },
    { title: "The loop: done again until the judge accepts",
      around: ["start", "sample", "shown", "verifier", "reflector", "controller"], colour: "#8a6d3b" },
    { title: "What came out", around: ["save", "report", "tree"], colour: "#3f7a4e" },
  ],
};
