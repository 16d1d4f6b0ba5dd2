// The shipped workflows: what is on them and where. build.mjs makes them on a real page.

const PROMPT = "two red circles left of a blue star and three yellow triangles";
const GROUPS = { sources: "#3f789e", loop: "#8a6d3b", result: "#3f7a4e" };

const note = (text, height = 260) => ({ type: "MarkdownNote", widgets: { first: text }, height, title: "Read me" });

// Note, model, judge and prompt.
function sources(readme, { model = "shapes-flux", kind = "shapes", prompt = PROMPT } = {}) {
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

// What came out, to the right of whatever made it.
const results = (title) => [
  {
    width: 440,
    nodes: {
      save: { type: "SaveImage", title: "The answer", widgets: { filename_prefix: `reflect/${title}` }, height: 340 },
      report: { type: "PreviewAny", title: "Report", height: 240 },
    },
  },
  { width: 640, nodes: { tree: { type: "ReflectShowRun", height: 680 } } },
];

const resultLinks = (from) => [
  [from, "image", "save", "images"],
  [from, "report", "report", "source"],
  [from, "run", "tree", "run_in"],
];

// A loop wired from the nodes. reflect, refine: whether those two are in it.
function loop(title, readme, { model, kind, prompt, seed = 0, candidates = 2, first = 0, rounds = 6, budget = 64,
                               reflect = true, refine = false, words = "", say = "replace", drawing = {} } = {}) {
  const speakers = {
    verifier: { type: "ReflectVerifier", height: 260 },
    ...(reflect ? { reflector: { type: "ReflectReflector", widgets: { words, say }, height: 260 } } : {}),
    ...(refine ? { refiner: { type: "ReflectRefiner" } } : {}),
  };
  const body = ["start", "sample", "shown", ...Object.keys(speakers), "controller"];
  const links = [
    ["model", "model", "sample", "reflect_model"],
    ["start", "run", "sample", "run_so_far"],
    ["start", "flow", "controller", "flow"],
    ["sample", "images", "shown", "images"],
    ["sample", "run", "verifier", "run_in"],
    ["verifier", "run", "controller", "run_in"],
    ["prompt", "STRING", "sample", "prompt"],
  ];
  let last = "verifier";
  for (const speaker of Object.keys(speakers)) {
    links.push(["prompt", "STRING", speaker, "prompt"], ["judge", "judge", speaker, "judge"]);
    if (speaker !== "verifier") {
      links.push([last, "run", speaker, "run_in"]);
      last = speaker;
    }
  }
  if (last !== "verifier") links.push([last, "run", "controller", "next_run"]);
  return {
    columns: [
      sources(readme, { model, kind, prompt }),
      {
        width: 340,
        nodes: {
          start: { type: "ReflectLoopStart" },
          sample: { type: "ReflectSample", widgets: { seed, candidates, first_round: first, ...drawing }, height: 600 },
          shown: { type: "PreviewImage", title: "Each round", height: 320 },
        },
      },
      { width: 320, nodes: speakers },
      {
        width: 320,
        nodes: { controller: { type: "ReflectLoopController", widgets: { rounds, budget }, height: 320 } },
      },
      ...results(title),
    ],
    links: [...links, ...resultLinks("controller")],
    groups: [
      { title: "What to draw, and who", around: ["note", "model", "judge", "prompt"], colour: GROUPS.sources },
      { title: "The loop: done again until the judge accepts", around: body, colour: GROUPS.loop },
      { title: "What came out", around: ["save", "report", "tree"], colour: GROUPS.result },
    ],
  };
}

export const layouts = {
  quickstart: loop("quickstart", note(`## Draw, look, be told, draw again

Press **Run**. The bundled model draws two pictures. The judge scores them, the reflector says what is wrong with each,
and the model draws them again as it is told, until the judge accepts or six rounds are drawn.

Change the prompt: circles, squares, triangles and stars in eight colours, such as *a green star above two red squares*.
Change **rounds** or **threshold** on the Loop Controller: rounds that were drawn are not drawn again.`, 400)),

  reflectionflow: loop("reflectionflow", note(`## ReflectionFlow (arXiv 2504.16080)

FLUX.1-dev with the reflection-tuned corrector, in the published search's numbers: 32 pictures from noise, then 16 rounds
that correct the best two, at 28 steps and guidance 3.5. It stops at the first accepted picture. The published script
goes on to the end, rewrites prompts and has some quirks; *official* in the all-in-one node has them all.

**Needs** \`models/diffusers/FLUX.1-dev\` and \`models/loras/FLUX-Corrector\`; Load Reflective DiT says what is missing.
With the model *shapes-flux* and the judge *shapes* the same workflow runs without a download.

With the judge *none* nobody judges: write in the Reflector what is to change.`, 500),
    { model: "flux-corrector", kind: "none", prompt: "two red circles left of a blue star", candidates: 2, first: 32,
      rounds: 17, budget: 64 }),

  reflect_dit: loop("reflect_dit", note(`## Reflect-DiT (arXiv 2503.12271)

The paper's setup: one picture at a time, up to 20 of them, each drawn with the ones before and the feedback on them in
view.

**Needs** the model *reflect-dit*; Load Reflective DiT says what is missing. With the model *shapes-flux* and the judge
*shapes* the same workflow runs without a download; that model sees the last picture only.`, 340),
    { model: "reflect-dit", kind: "none", prompt: "two red circles left of a blue star", candidates: 1, rounds: 20,
      budget: 20 }),

  best_of_n: loop("best_of_n", note(`## Best of n

What reflection is compared with: fresh pictures from noise, four a round, until the judge accepts one or twenty are
drawn. Nobody reflects, so nothing is wired to *next run*.`, 260),
    { candidates: 4, rounds: 5, budget: 20, reflect: false }),

  noise_prompt_scaling: loop("noise_prompt_scaling", note(`## Noise and prompt scaling

Fresh pictures from noise in every round, each from a prompt that was rewritten after the last picture. No picture is
handed on.`, 240),
    { candidates: 2, rounds: 10, budget: 20, reflect: false, refine: true }),

  human_in_the_loop: loop("human_in_the_loop", note(`## You say what is wrong

1. Press **Run**: one picture is drawn.
2. Write in the **Reflector** what should change, such as *add a red circle*, on the first line.
3. Set **rounds** on the Loop Controller to 2 and press **Run**: the picture is corrected.
4. For the next round write a second line, and so on.

Lines that are there already are told again, so the rounds before come out the same.`, 380),
    { candidates: 1, rounds: 1, kind: "none", words: "add a red circle", say: "line by line" }),

  all_in_one: {
    columns: [
      sources(note(`## The whole search in one node

The same search as *reflect run* on the command line: pictures from noise, then corrections of the best. Choose another
**policy** to compare; each stops at the first picture that the judge accepts, all but *official*.`, 280)),
      { width: 360, nodes: { loop: { type: "ReflectLoop", widgets: { seed: 0 }, height: 680 } } },
      {
        width: 440,
        nodes: {
          ...results("all_in_one")[0].nodes,
          all: { type: "PreviewImage", title: "All pictures", height: 320 },
        },
      },
      results("all_in_one")[1],
    ],
    links: [
      ["model", "model", "loop", "reflect_model"],
      ["judge", "judge", "loop", "judge"],
      ["prompt", "STRING", "loop", "prompt"],
      ["loop", "images", "all", "images"],
      ...resultLinks("loop"),
    ],
    groups: [
      { title: "What to draw, and who", around: ["note", "model", "judge", "prompt"], colour: GROUPS.sources },
      { title: "The search", around: ["loop"], colour: GROUPS.loop },
      { title: "What came out", around: ["save", "report", "all", "tree"], colour: GROUPS.result },
    ],
  },
};
