// node check.mjs URL WORKFLOWS SHOTS RENDERER [NAME...]: every shipped workflow on a real page.
//
// Prints one line of JSON for each: nodes that are red or unknown, whether the API form is the shipped one, and how a run
// ended with the bundled model in place of weights that are not here, and the judge's server at the address in JUDGE. Where
// a person speaks, or such a server, a second round is drawn. RENDERER is classic or vue.

import fs from "node:fs";
import path from "node:path";

import { badNodes, loadWorkflow, openPage, prompt, runGraph, screenshot } from "./page.mjs";

const [url, folder, shots, renderer, ...names] = process.argv.slice(2);
const { browser, page, errors } = await openPage(url, { vue: renderer === "vue" });
fs.mkdirSync(shots, { recursive: true });
for (const name of names) {
  errors.length = 0;
  const workflow = JSON.parse(fs.readFileSync(path.join(folder, `${name}.json`), "utf8"));
  await loadWorkflow(page, workflow, name);
  const shipped = JSON.parse(fs.readFileSync(path.join(folder, "api", `${name}.json`), "utf8"));
  const same = JSON.stringify(sorted(await prompt(page))) === JSON.stringify(sorted(shipped));
  const bad = await badNodes(page);
  await page.evaluate((server) => {
    const widget = (type, name) => app.graph._nodes.find((node) => node.type === type)?.widgets
      .find((one) => one.name === name);
    const model = widget("ReflectLoadModel", "model"), kind = widget("ReflectLoadJudge", "kind");
    const address = widget("ReflectServerJudge", "address");
    if (!model.value.startsWith("shapes-")) model.value = "shapes-flux";
    if (address) address.value = server;
    if (address || kind.value === "none") widget("ReflectLoopController", "rounds").value = 2;
    const first = widget("ReflectSample", "first_round");
    if (address && first) first.value = 4;
  }, process.env.JUDGE);
  const failed = await runGraph(page);
  await page.waitForTimeout(2500);
  await screenshot(page, path.join(shots, `${name}-${renderer}.png`));
  const ours = errors.filter((error) => /reflect/i.test(error));
  console.log(JSON.stringify({ name, bad, same, failed, errors: ours }));
}
await browser.close();

function sorted(value) {
  if (Array.isArray(value) || value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}
