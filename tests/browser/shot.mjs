// node shot.mjs URL FILE.json OUT.png [vue] [run]: a workflow as it looks, perhaps after a run.

import fs from "node:fs";

import { badNodes, loadWorkflow, openPage, runGraph, screenshot } from "./page.mjs";

const [url, file, out, ...how] = process.argv.slice(2);
const { browser, page, errors } = await openPage(url, { vue: how.includes("vue") });
await loadWorkflow(page, JSON.parse(fs.readFileSync(file, "utf8")), "shot");
const bad = await badNodes(page);
const failed = how.includes("run") ? await runGraph(page) : null;
if (how.includes("run")) await page.waitForTimeout(3000);
await screenshot(page, out);
await browser.close();
console.log(JSON.stringify({ bad, failed, errors }));
