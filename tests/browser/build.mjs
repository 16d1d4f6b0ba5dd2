// node build.mjs URL OUT [NAME...]: make the workflows of layouts.mjs on a real page and save what the frontend saves.
//
// OUT/NAME.json is the workflow, OUT/api/NAME.json its API form.

import fs from "node:fs";
import path from "node:path";

import { layouts } from "./layouts.mjs";
import { openPage, prompt } from "./page.mjs";

const [url, out, ...names] = process.argv.slice(2);
const { browser, page } = await openPage(url);
fs.mkdirSync(path.join(out, "api"), { recursive: true });
for (const name of names.length ? names : Object.keys(layouts)) {
  await page.evaluate(build, layouts[name]);
  await page.waitForTimeout(500);
  const workflow = await page.evaluate(() => app.graph.serialize());
  fs.writeFileSync(path.join(out, `${name}.json`), JSON.stringify(tidy(workflow, name), null, 1) + "\n");
  fs.writeFileSync(path.join(out, "api", `${name}.json`), JSON.stringify(await prompt(page), null, 1) + "\n");
  console.log(name);
}
await browser.close();

// In the page. Columns from left to right, nodes in a column from top to bottom, groups around what they name.
function build({ columns, links, groups, notes }) {
  // The newer renderer makes nodes some pixels taller than they are told to be.
  const GAP = 60, ROW = 90;
  app.graph.clear();
  const made = {};
  let x = 0;
  for (const column of columns) {
    let y = 0;
    for (const [key, spec] of Object.entries(column.nodes)) {
      y = spec.top ?? y;
      const node = LiteGraph.createNode(spec.type);
      if (!node) throw new Error(`no node ${spec.type}`);
      app.graph.add(node);
      if (spec.title) node.title = spec.title;
      for (const [name, value] of Object.entries(spec.widgets ?? {})) {
        const widget = name === "first" ? node.widgets[0] : node.widgets.find((one) => one.name === name);
        if (!widget) throw new Error(`${spec.type} has no widget ${name}`);
        widget.value = value;
      }
      for (const widget of node.widgets ?? []) {
        if (widget.name === "control_after_generate") widget.value = "fixed";
      }
      const least = node.computeSize();
      const height = Math.max(least[1], spec.height ?? 0);
      node.pos = [x, y];
      node.setSize([column.width, height]);
      if (spec.colour) Object.assign(node, LGraphCanvas.node_colors[spec.colour]);
      made[key] = node;
      y += height + (spec.after ?? ROW);
    }
    x += column.width + (column.gap ?? GAP);
  }
  for (const [from, output, to, input] of links) {
    const source = made[from].outputs.findIndex((one) => one.name === output || one.label === output);
    const target = made[to].inputs.findIndex((one) => one.name === input);
    if (source < 0 || target < 0) throw new Error(`no link ${from}.${output} -> ${to}.${input}`);
    made[from].connect(source, made[to], target);
  }
  for (const { title, around, colour } of groups ?? []) {
    const boxes = around.map((key) => [...made[key].pos, ...made[key].size]);
    const left = Math.min(...boxes.map((b) => b[0])) - 20, top = Math.min(...boxes.map((b) => b[1])) - 80;
    const right = Math.max(...boxes.map((b) => b[0] + b[2])) + 20;
    const bottom = Math.max(...boxes.map((b) => b[1] + b[3])) + 20;
    const group = new LiteGraph.LGraphGroup(title);
    group.pos = [left, top];
    group.size = [right - left, bottom - top];
    if (colour) group.color = colour;
    app.graph.add(group);
  }
}

// What depends on the day and the page is left out; ids and links stay as the frontend made them.
function tidy(workflow, name) {
  const { extra, ...rest } = workflow;
  const id = [...name].reduce((sum, c) => (sum * 31 + c.charCodeAt(0)) % 0xffffffff, 7).toString(16).padStart(8, "0");
  return { ...rest, id: `${id}-5ef1-4ec7-8000-000000000000`, extra: { ds: { scale: 0.8, offset: [60, 120] } } };
}
