// The shipped workflows: what is on them and where. build.mjs makes them on a real page.

const PROMPT = "two red circles left of a blue star and three yellow triangles";
const GROUPS = { sources: "#3f789e", loop: "#8a6d3b", result: "#3f7a4e" };

const note = (text, height = 400) => ({ type: "MarkdownNote", widgets: { first: text }, height, title: "Read me" });

// Note, model, judge and prompt. `server`: the judge is a language model behind one, with these widgets.
function sources(readme, { model = "shapes-flux", join = "the model's own", kind = "shapes", prompt = PROMPT, server } = {}) {
  const judge = server ? { type: "ReflectServerJudge", widgets: server, height: 400 }
    : { type: "ReflectLoadJudge", widgets: { kind } };
  return {
    width: 360,
    nodes: {
      note: readme,
      model: { type: "ReflectLoadModel", widgets: { model, text_join: join } },
      judge,
      prompt: { type: "PrimitiveStringMultiline", title: "Prompt", widgets: { value: prompt }, height: 140 },
    },
  };
}

// What came out, to the right of whatever made it: below the wire that goes on to the tree.
const results = (title) => [
  {
    width: 400,
    nodes: {
      save: { type: "SaveImage", title: "The answer", widgets: { filename_prefix: `reflect/${title}` }, top: 140, height: 340 },
      report: { type: "PreviewAny", title: "Report", height: 240 },
    },
  },
  { width: 620, nodes: { tree: { type: "ReflectShowRun", height: 680 } } },
];

const resultLinks = (from) => [
  [from, "image", "save", "images"],
  [from, "report", "report", "source"],
  [from, "run", "tree", "run_in"],
];

// A loop wired from the nodes. reflect, refine: whether those two are in it.
// No wire runs behind a node: `flow` goes above all, judge and prompt go below the sampler, each speaker stands lower than
// the one before, and its run goes up to the controller.
function loop(title, readme, { model, join, kind, prompt, server, seed = 0, candidates = 2, first = 0, rounds = 6, budget = 64,
                               reflect = true, refine = false, words = "", say = "replace", keep = "best" } = {}) {
  const speakers = {
    ...(reflect ? { reflector: { type: "ReflectReflector", widgets: { words, say }, top: 1160, height: 260 } } : {}),
    ...(refine ? { refiner: { type: "ReflectRefiner", top: reflect ? 1500 : 1160, height: 200 } } : {}),
  };
  const body = ["start", "sample", "shown", "verifier", ...Object.keys(speakers), "controller"];
  const links = [
    ["model", "model", "sample", "reflect_model"],
    ["start", "run", "sample", "run_so_far"],
    ["start", "flow", "controller", "flow"],
    ["sample", "images", "shown", "images"],
    ["sample", "run", "verifier", "run_in"],
    ["verifier", "run", "controller", "run_in"],
    ["prompt", "STRING", "sample", "prompt"],
    ["prompt", "STRING", "verifier", "prompt"],
    ["judge", "judge", "verifier", "judge"],
  ];
  let last = "verifier";
  for (const speaker of Object.keys(speakers)) {
    links.push(["prompt", "STRING", speaker, "prompt"], ["judge", "judge", speaker, "judge"]);
    links.push([last, "run", speaker, "run_in"]);
    last = speaker;
  }
  if (last !== "verifier") links.push([last, "run", "controller", "next_run"]);
  return {
    columns: [
      sources(readme, { model, join, kind, prompt, server }),
      { width: 200, nodes: { start: { type: "ReflectLoopStart" } } },
      {
        width: 340,
        nodes: {
          sample: { type: "ReflectSample", widgets: { seed, candidates, first_round: first }, top: 90, height: 600 },
        },
      },
      {
        width: 320,
        nodes: {
          shown: { type: "PreviewImage", title: "Each round", top: 170, height: 320 },
          verifier: { type: "ReflectVerifier", top: 780, height: 260 },
        },
      },
      ...Object.entries(speakers).map(([key, speaker]) => ({ width: 320, nodes: { [key]: speaker }, gap: 100 })),
      {
        width: 320,
        nodes: { controller: { type: "ReflectLoopController", widgets: { rounds, budget, keep }, height: 320 } },
      },
      ...results(title),
    ],
    links: [...links, ...resultLinks("controller")],
    groups: [
      { title: "What to draw, and who", around: ["note", "model", "judge", "prompt"], colour: GROUPS.sources },
      { title: `The loop: done again ${kind === "none" ? "in every round" : "until the judge accepts"}`, around: body, colour: GROUPS.loop },
      { title: "What came out", around: ["save", "report", "tree"], colour: GROUPS.result },
    ],
  };
}

export const layouts = {
  quickstart: loop("quickstart", note(`## Draw, look, be told, draw again

Press **Run**. The bundled model draws two pictures. The judge scores them, the reflector says what is wrong with each,
and the model draws them again as it is told, until the judge accepts or six rounds are drawn.

Change the prompt: circles, squares, triangles and stars in eight colours, such as *a green star above two red squares*.
Change **rounds** or **threshold** on the Loop Controller: rounds that were drawn are not drawn again.`)),

  reflectionflow: loop("reflectionflow", note(`## ReflectionFlow (arXiv 2504.16080)

FLUX.1-dev with the reflection-tuned corrector, in the shape of the published search: 32 pictures from noise, then 16
rounds of two corrections with rewritten prompts, 28 steps, guidance 3.5. What differs from the published script: 28 steps
also for the first 32 (there 30); it stops at the first accepted picture; a correction that is worse than its parent is
dropped; a picture from noise may be the answer. *official* in the all-in-one node has all of it as published.

**Needs**

1. \`models/diffusers/FLUX.1-dev\` and \`models/loras/FLUX-Corrector\`; Load Reflective DiT says what is missing. FLUX in
   single files, also fp8 and GGUF: **Load FLUX Files** in its place.
2. A judge: a language model that sees pictures, on a server such as LM Studio, Ollama or llama.cpp. Put its **address**
   and **model** into Load Judge (server). Or **Load Judge (language model)** in its place, with a folder of your own.
3. On a card of 24 GB **quantise** at *fp8* in Load Reflective DiT, of 8 to 16 GB at *nf4*: its help says what fits.

With the model *shapes-flux* and **Load Judge** with *shapes* the same workflow runs without a download.`, 760),
    { model: "flux-corrector", join: "search", server: { ask: "checks", reflect: "edits" }, candidates: 2, first: 32, rounds: 17,
      budget: 64, refine: true }),

  reflect_dit: loop("reflect_dit", note(`## Reflect-DiT (arXiv 2503.12271)

Press **Run**. The paper's search: one picture at a time, up to N = 20, each drawn with up to K = 3 earlier pictures and
the feedback on them in view, until the judge accepts one. *shapes-sana* comes with the pack.

**The paper's setup** has the same search with SANA 1.6B at its own 1024 pixels, 20 steps and guidance 4.5:

1. Choose the model *reflect-dit*. Load Reflective DiT says what is missing.
2. Put **Load Judge (language model)** in the judge's place: the paper's own with *ask* and *reflect* at *released*, or any
   other with *reflect* at *sentence*. Or **Load Judge (server)**.
3. The paper's answer is the first accepted picture, else the last: set **keep** to *last*. Here it is the best.`, 520),
    { model: "shapes-sana", candidates: 1, rounds: 20, budget: 20 }),

  best_of_n: loop("best_of_n", note(`## Best of n

Press **Run**. What reflection is compared with: fresh pictures from noise, four a round, until the judge accepts one or twenty are
drawn. Nobody reflects, so nothing is wired to *next run*.`),
    { candidates: 4, rounds: 5, budget: 20, reflect: false }),

  noise_prompt_scaling: loop("noise_prompt_scaling", note(`## Noise and prompt scaling

Press **Run**. Two fresh pictures are drawn from noise in every round; from the second round on, each from a prompt that
was rewritten after the picture before it. No picture is corrected. It ends when the judge accepts one or twenty are
drawn.`),
    { candidates: 2, rounds: 10, budget: 20, reflect: false, refine: true }),

  human_in_the_loop: loop("human_in_the_loop", note(`## You say what is wrong

1. Press **Run**: one picture is drawn.
2. Look at it. In the **Reflector**, put what should change in the place of *add a red circle*.
3. Set **rounds** on the Loop Controller to 2 and press **Run**: the picture is corrected.
4. For each further round write one more line and set **rounds** one higher. A round without a line draws a fresh
   picture.

Lines that are there already are told again, so the rounds before come out the same.`),
    { candidates: 1, rounds: 1, kind: "none", words: "add a red circle", say: "line by line", keep: "last" }),

  all_in_one: {
    columns: [
      sources(note(`## The whole search in one node

Press **Run**. The same search as *reflect run* on the command line: pictures from noise, then corrections of the best. Choose another
**policy** to compare; each stops at the first picture that the judge accepts, all but *official*.`)),
      { width: 360, nodes: { loop: { type: "ReflectLoop", widgets: { seed: 0 }, height: 740 } }, gap: 100 },
      {
        width: 400,
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
