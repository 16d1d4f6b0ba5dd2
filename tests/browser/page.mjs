// A page of ComfyUI in a headless Chromium: open it, put a graph on it, run it, look at it.
// playwright-core is looked for in the folder that PLAYWRIGHT_CORE names, or where Node finds it by itself.

import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.join(process.env.PLAYWRIGHT_CORE ?? process.cwd(), "package.json"));
const { chromium } = require("playwright-core");

const SIZE = { width: 2800, height: 1300 };

export async function openPage(url, { vue = false } = {}) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--disable-quic"],
  });
  const page = await browser.newPage({ viewport: SIZE });
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error.stack ?? error)));
  // Else the template dialog covers a new user's page.
  await page.request.post(`${url}/api/settings`, { data: { "Comfy.TutorialCompleted": true } });
  await open(page, url);
  if (vue !== await page.evaluate(() => Boolean(app.extensionManager.setting.get("Comfy.VueNodes.Enabled")))) {
    // Switched on a page that is open, nodes of the graph before stay on it.
    await page.evaluate((on) => app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on), vue);
    await page.waitForTimeout(1000);
    await open(page, url);
  }
  return { browser, page, errors };
}

async function open(page, url) {
  await page.goto(url);
  await page.waitForFunction(() => window.app?.graph && window.app?.extensionManager, null, { timeout: 120000 });
  await page.waitForTimeout(4000);
}

export async function loadWorkflow(page, workflow, name) {
  await page.evaluate(async ([json, title]) => {
    await app.loadGraphData(json, true, true, title);
  }, [workflow, name]);
  await page.waitForTimeout(1500);
  await page.evaluate(() => app.extensionManager.command.execute("Comfy.Canvas.FitView"));
  await page.waitForTimeout(1500);
}

export async function prompt(page) {
  const output = await page.evaluate(async () => (await app.graphToPrompt()).output);
  // Older frontends take what a preview shows for an input of its node.
  for (const node of Object.values(output)) if (node.class_type === "PreviewAny") delete node.inputs.preview;
  return output;
}

// Types that this ComfyUI does not know, and nodes that are drawn red.
export function badNodes(page) {
  return page.evaluate(() => app.graph._nodes
    .filter((node) => node.has_errors || !(node.type in LiteGraph.registered_node_types))
    .map((node) => `${node.id} ${node.type}`));
}

// Queue what is on the page and wait for its end; the error's text, or null.
export async function runGraph(page, seconds = 300) {
  return page.evaluate(async (limit) => {
    const ended = new Promise((resolve) => {
      const api = app.api ?? window.comfyAPI?.api?.api;
      api.addEventListener("execution_error", (event) => resolve(event.detail.exception_message));
      api.addEventListener("execution_success", () => resolve(null));
      setTimeout(() => resolve(`not done after ${limit} s`), 1000 * limit);
    });
    await app.queuePrompt(0, 1);
    return ended;
  }, seconds);
}

export async function screenshot(page, file) {
  await page.screenshot({ path: file });
}
