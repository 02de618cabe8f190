// The server's page in headless Chromium: a text, its reading, a question, the answer and
// where that came from. `make test-web`; SCREENSHOTS=DIR keeps pictures.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const root = fileURLToPath(new URL("../..", import.meta.url));
const dir = mkdtempSync(join(tmpdir(), "kiv-web-"));
const server = spawn(join(root, "target/release/kiv"),
  ["serve", "--port", "0", "-t", "1", "--kv-window", "256", "--kv-budget", "512", "-ub", "128", "--api-key", "open sesame"],
  { stdio: ["ignore", "inherit", "pipe"] });
let browser;
process.on("exit", () => { server.kill("SIGKILL"); rmSync(dir, { recursive: true, force: true }); });

function must(holds, what) {
  if (!holds) throw new Error(`not so: ${what}`);
}

// Prose with a fact in its middle, some ten thousand tokens.
const prose = readFileSync(join(root, "docs/tiers.md"), "utf8").replace(/[`*|#]/g, "");
const text = `${prose}\nThe secret code of Amber Falcon is 48213.\n${prose}`;
const file = join(dir, "book.txt");
writeFileSync(file, text);

const address = await new Promise((found, failed) => {
  let told = "";
  server.stderr.on("data", (more) => {
    told += more;
    const match = /listening on (http:\S+)/.exec(told);
    if (match) found(match[1]);
  });
  server.on("exit", () => failed(new Error(told)));
});

browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage({ viewport: { width: 900, height: 720 }, colorScheme: "light" });
const faults = [];
page.on("pageerror", (error) => faults.push(error.message));
page.on("console", (message) => {
  // The first answer is that a key is wanted.
  if (message.type() === "error" && !/401/.test(message.text())) faults.push(message.text());
});
const foreign = [];
page.on("request", (request) => { if (!request.url().startsWith(address)) foreign.push(request.url()); });

await page.goto(address);
await page.locator("#secret").fill("open sesame");
await page.keyboard.press("Enter");
await page.locator("#model", { hasText: "tiny" }).waitFor();

await page.locator("#file").setInputFiles(file);
await page.locator("#name", { hasText: "book.txt" }).waitFor();
await page.locator("#question").fill("What is the secret code of Amber Falcon?");
await page.keyboard.press("Enter");
await page.locator("#left", { hasText: /tokens read, .* left/ }).waitFor();
const answer = page.locator("#turns li.assistant");
await answer.locator(".figures").waitFor({ timeout: 120_000 });
must((await answer.textContent()).includes("48213"), "the answer is right");
must((await answer.locator(".strip i").count()) === 160, "there is a heat strip");

// The hottest places are looked at by keyboard until one has the fact.
const places = answer.locator(".places button");
let found = false;
for (let i = 0; i < await places.count() && !found; i++) {
  await places.nth(i).focus();
  await page.keyboard.press("Enter");
  found = (await answer.locator(".passage").textContent()).includes("Amber Falcon is 48213");
}
must(found, "the fact's passage is among the first");
// A click into the strip's middle shows the passage nearest to it.
const box = await answer.locator(".strip").boundingBox();
await page.mouse.click(box.x + box.width / 2, box.y + box.height / 2);
must(await answer.locator(".passage").isVisible(), "a click shows a passage");
must(/MiB/.test(await page.locator("#device").textContent()), "tiers are shown");

// What a model or a user writes is text, whatever it looks like.
await page.locator("#question").fill("<img src=x onerror=\"document.title='owned'\"> **bold**");
await page.keyboard.press("Enter");
await page.locator("#turns li.assistant .figures").nth(1).waitFor({ timeout: 60_000 });
must((await page.title()) === "kiv" && (await page.locator("#turns img").count()) === 0, "nothing is run");

if (process.env.SCREENSHOTS) {
  await page.locator("#turns").evaluate((turns) => [...turns.children].slice(2).forEach((turn) => turn.remove()));
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.screenshot({ path: join(process.env.SCREENSHOTS, `page-${scheme}.png`) });
  }
}
must(faults.length === 0, `no faults: ${faults}`);
must(foreign.length === 0, `nothing is fetched elsewhere: ${foreign}`);
await browser.close();
console.log("the page works: reading, answer, passages, keyboard, nothing run and nothing fetched elsewhere");
process.exit(0);
