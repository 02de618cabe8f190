// The page of `kiv serve`: asks by the server's own OpenAI protocol.
"use strict";

const by = (id) => document.getElementById(id);
const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
};

let said = []; // turns so far: {role, content}; another list for each document
let text = null; // the document
let running = null; // AbortController of the answer being written

function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// The key is asked for once, however many requests wait for it.
let wanted = null;

function wantKey() {
  wanted ??= new Promise((given) => {
    const dialog = by("key");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("key", by("secret").value);
      wanted = null;
      given();
    }, { once: true });
    dialog.showModal();
  });
  return wanted;
}

async function fetched(path, options = {}) {
  for (;;) {
    const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
    if (answer.status !== 401) return answer;
    await wantKey();
  }
}

// Figures.

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) { n /= 1024; at += 1; }
  return `${n < 10 && at > 0 ? n.toFixed(1) : Math.round(n)} ${units[at]}`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

async function showTiers() {
  try {
    const slots = await (await fetched("/slots")).json();
    const sum = (name) => slots.reduce((all, slot) => all + slot[name], 0);
    by("tokens").textContent = `${Math.max(0, ...slots.map((s) => s.n_tokens)).toLocaleString()} tokens`;
    by("device").textContent = bytes(sum("resident_kv_bytes"));
    by("host").textContent = bytes(sum("host_kv_bytes"));
    by("disk").textContent = bytes(sum("disk_kv_bytes"));
  } catch { /* the server is busy or gone: the next time */ }
}

// Markdown, as far as models write it. Only text nodes are made of what a model says.

function inline(parent, line) {
  const parts = line.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*)/);
  for (const part of parts) {
    if (part.startsWith("`") && part.length > 2) parent.append(make("code", part.slice(1, -1)));
    else if (part.startsWith("**") && part.length > 4) parent.append(make("strong", part.slice(2, -2)));
    else if (part.startsWith("*") && part.length > 2) parent.append(make("em", part.slice(1, -1)));
    else if (part) parent.append(part);
  }
}

function markdown(source) {
  const out = document.createDocumentFragment();
  let list = null, paragraph = null, code = null;
  for (const line of source.split("\n")) {
    if (line.startsWith("```")) {
      if (code) code = null;
      else { code = make("code", ""); const pre = make("pre"); pre.append(code); out.append(pre); }
      list = paragraph = null;
      continue;
    }
    if (code) { code.textContent += `${line}\n`; continue; }
    const heading = /^(#{1,4}) (.*)/.exec(line);
    // A longer number is one that a sentence ends with, such as a year.
    const item = /^\s*([-*]|\d{1,3}\.) (.*)/.exec(line);
    if (heading) {
      const h = make(`h${heading[1].length + 2}`);
      inline(h, heading[2]);
      out.append(h);
      list = paragraph = null;
    } else if (item) {
      const kind = /\d/.test(item[1]) ? "OL" : "UL";
      if (!list || list.tagName !== kind) { list = make(kind); out.append(list); }
      const li = make("li");
      if (kind === "OL") li.value = parseInt(item[1], 10);
      inline(li, item[2]);
      list.append(li);
      paragraph = null;
    } else if (line.trim() === "") {
      list = paragraph = null;
    } else {
      if (paragraph) paragraph.append(make("br"));
      else { paragraph = make("p"); out.append(paragraph); }
      inline(paragraph, line);
      list = null;
    }
  }
  return out;
}

// Where an answer came from.

function strip(retrieved) {
  const box = make("div");
  const most = Math.max(1e-9, ...retrieved.bins);
  const bar = make("div", undefined, "strip");
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", "Parts of the text that were looked up, from its beginning to its end");
  for (const count of retrieved.bins) {
    const cell = make("i");
    cell.style.opacity = (count / most) ** 0.7;
    bar.append(cell);
  }
  const places = make("div", undefined, "places");
  const passage = make("div", undefined, "passage");
  passage.hidden = true;
  const buttons = retrieved.passages.map((place) => {
    const button = make("button", `${(100 * place.from / retrieved.tokens).toFixed(1)} %`);
    button.type = "button";
    button.title = `tokens ${place.from} to ${place.to}, ${(100 * place.share).toFixed(1)} % of the attention to the text`;
    button.addEventListener("click", () => show(button.getAttribute("aria-pressed") === "true" ? null : button, place));
    return button;
  });
  function show(chosen, place) {
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === chosen)));
    passage.hidden = chosen === null;
    passage.textContent = place.text;
  }
  bar.addEventListener("click", (event) => {
    const at = (event.clientX - bar.getBoundingClientRect().left) / bar.clientWidth * retrieved.tokens;
    const far = (place) => Math.abs((place.from + place.to) / 2 - at);
    const nearest = retrieved.passages.map((p, i) => [far(p), i]).sort((a, b) => a[0] - b[0])[0];
    if (nearest) show(buttons[nearest[1]], retrieved.passages[nearest[1]]);
  });
  places.append(...buttons);
  box.append(bar, places, passage);
  return box;
}

// The document.

function setDocument(name, content) {
  text = content;
  by("name").textContent = content === null ? "Drop a text here, or choose a file" : `${name} (${bytes(content.length)})`;
  by("forget").hidden = content === null;
  // What is being written was asked about another text.
  running?.abort();
  said = [];
  by("turns").replaceChildren();
}

async function take(file) {
  if (!file) return;
  const content = await file.text();
  if (content.includes("\0")) {
    tell("fault", `${file.name} is not a text.`);
    return;
  }
  setDocument(file.name, content);
  by("question").focus();
}

// Turns.

function tell(kind, content) {
  const turn = make("li", undefined, kind);
  turn.append(kind === "user" ? make("p", content) : markdown(content));
  by("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

// Thoughts stay folded, or as the reader has left them.
function thinking(turn, thoughts) {
  if (!thoughts) return [];
  const folded = turn.querySelector("details.thoughts") ?? make("details", undefined, "thoughts");
  folded.replaceChildren(make("summary", "Thoughts"), make("p", thoughts));
  return [folded];
}

function showReading(progress, began) {
  const { processed, total, cache } = progress;
  by("reading").hidden = processed >= total;
  by("bar").value = processed / total;
  const rate = (processed - cache) / ((performance.now() - began) / 1000);
  const left = rate > 0 ? `, ${duration((total - processed) / rate)} left` : "";
  by("left").textContent = `${processed.toLocaleString()} of ${total.toLocaleString()} tokens read${left}`;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function ask(question) {
  const turns = said;
  turns.push({ role: "user", content: question });
  tell("user", question);
  const turn = tell("assistant", "");
  const messages = text === null ? turns : [{ role: "system", content: text }, ...turns];
  running = new AbortController();
  by("send").disabled = true;
  by("stop").hidden = false;
  let content = "", thoughts = "", began = performance.now(), first = null, pieces = 0;
  try {
    const answer = await fetched("/v1/chat/completions", {
      method: "POST",
      signal: running.signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        messages, stream: true, temperature: 0, max_tokens: 8192,
        return_progress: true, kiv_retrieved: true, stream_options: { include_usage: true },
      }),
    });
    if (!answer.ok) throw new Error((await answer.json()).error?.message ?? answer.statusText);
    for await (const piece of events(answer.body)) {
      if (piece.error) throw new Error(piece.error.message);
      if (piece.prompt_progress) { showReading(piece.prompt_progress, began); continue; }
      const { content: more = "", reasoning_content: thought = "" } = piece.choices?.[0]?.delta ?? {};
      if (more || thought) {
        by("reading").hidden = true;
        first ??= performance.now();
        pieces += 1;
        content += more;
        thoughts += thought;
        turn.replaceChildren(...thinking(turn, thoughts), markdown(content));
        turn.scrollIntoView({ block: "end" });
        const seconds = (performance.now() - first) / 1000;
        if (seconds > 0.3) by("speed").textContent = `${(pieces / seconds).toFixed(1)} tokens/s`;
      }
      if (piece.kiv_retrieved?.passages?.length) turn.append(strip(piece.kiv_retrieved));
      if (piece.usage) {
        const known = piece.usage.prompt_tokens_details?.cached_tokens ?? 0;
        const wait = first === null ? "" : `, first word after ${((first - began) / 1000).toFixed(1)} s`;
        turn.append(make("p", `${piece.usage.prompt_tokens.toLocaleString()} tokens, ${known.toLocaleString()} known before${wait}`, "figures"));
        turn.scrollIntoView({ block: "end" });
      }
    }
  } catch (error) {
    if (error.name !== "AbortError" && turns === said) tell("fault", error.message);
  }
  // Without an answer the question is as if it had not been asked: templates want the two in
  // turn, and one that was refused would be refused again with all that follow.
  if (content === "") turns.pop();
  else turns.push({ role: "assistant", content });
  running = null;
  by("reading").hidden = true;
  by("send").disabled = false;
  by("stop").hidden = true;
  showTiers();
}

// Hands.

by("file").addEventListener("change", (event) => take(event.target.files[0]));
by("forget").addEventListener("click", () => setDocument("", null));
by("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); by("file").click(); }
});
document.addEventListener("dragover", (event) => { event.preventDefault(); by("drop").classList.add("over"); });
document.addEventListener("dragleave", () => by("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  by("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
by("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    by("ask").requestSubmit();
  }
});
by("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = by("question").value.trim();
  if (running || question === "") return;
  by("question").value = "";
  ask(question);
});
by("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });

fetched("/v1/models").then((answer) => answer.json()).then((models) => {
  by("model").textContent = models.data?.[0]?.id ?? "";
});
showTiers();
setInterval(showTiers, 2000);
by("question").focus();
