/**
 * The chat page. It talks to its own server only; conversations stay in this browser. Answers are Markdown, made into HTML
 * by marked and cleaned by DOMPurify: nothing that a model writes can run, or be fetched from anywhere.
 */
"use strict";

const $ = (id) => document.getElementById(id);
const turnsBox = $("turns");
const STORE = "planish-chats";
const SETTINGS = "planish-settings";
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "tokens", "seed"];
const CHECKS = ["json", "probabilities"];
/** Conversations that are kept. */
const MOST_KEPT = 100;

let conversations = load(STORE, []);
let current = begin();
let running;
let model;

function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name) ?? "") ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keeps what there is; a browser that keeps nothing is no reason to stop talking. */
function save(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // Its storage is full, or forbidden.
  }
}

function begin() {
  return { id: String(Date.now()), turns: [] };
}

function keep() {
  if (current.turns.length === 0) return;
  conversations = [current, ...conversations.filter(({ id }) => id !== current.id)];
  conversations = conversations.slice(0, MOST_KEPT);
  save(STORE, conversations);
  showList();
}

const headers = () => {
  const key = $("key").value.trim();
  return {
    "content-type": "application/json",
    ...(key === "" ? {} : { authorization: `Bearer ${key}` }),
  };
};

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function refuse(response) {
  const body = await response.json().catch(() => undefined);
  throw new Error(body?.error?.message ?? `the server answered ${response.status}`);
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(text, onClick, label) {
  const made = element("button", "small", text);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", onClick);
  return made;
}

/** What is allowed in answers: text and its structure, nothing that is fetched or filled in. */
const CLEAN = {
  USE_PROFILES: { html: true },
  FORBID_TAGS: ["img", "picture", "video", "audio", "source", "style", "form", "input", "button"],
  FORBID_ATTR: ["style", "class", "id", "name"],
};
DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("rel", "noopener noreferrer nofollow");
  node.setAttribute("target", "_blank");
});

function showMarkdown(box, text) {
  box.innerHTML = DOMPurify.sanitize(marked.parse(text, { gfm: true, breaks: true }), CLEAN);
  for (const pre of box.querySelectorAll("pre")) {
    const code = element("div", "code");
    pre.replaceWith(code);
    pre.tabIndex = 0;
    const copy = button("Copy", async () => {
      await navigator.clipboard.writeText(pre.textContent);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    });
    code.append(copy, pre);
  }
}

function addTurn(turn, index) {
  const section = element("section", `turn ${turn.role}`);
  const body = element("div", "body");
  const tools = element("div", "tools");
  section.append(element("h2", "", turn.role === "user" ? "You" : "Model"), body, tools);
  if (turn.role === "user") {
    body.append(element("p", "", turn.content));
    tools.append(button("Edit", () => edit(index), "Edit this message"));
  } else {
    showMarkdown(body, turn.content);
    if (turn.tokens) tools.append(probabilitiesButton(turn, body));
    if (index === current.turns.length - 1)
      tools.append(button("Regenerate", regenerate, "Regenerate this answer"));
  }
  turnsBox.append(section);
  turnsBox.scrollTop = turnsBox.scrollHeight;
  return body;
}

function showTurns() {
  turnsBox.replaceChildren();
  current.turns.forEach(addTurn);
}

function showList() {
  $("list").replaceChildren(
    ...conversations.map((each) => {
      const [first] = each.turns;
      const title = first?.content.slice(0, 60) ?? "";
      const item = element("li");
      const choose = button(title, () => open(each.id), `Open: ${title}`);
      if (each.id === current.id) choose.setAttribute("aria-current", "true");
      item.append(
        choose,
        button("Delete", () => forget(each.id), `Delete: ${title}`),
      );
      return item;
    }),
  );
}

function open(id) {
  running?.abort();
  current = conversations.find((each) => each.id === id) ?? begin();
  showTurns();
  showList();
  say("");
}

function forget(id) {
  conversations = conversations.filter((each) => each.id !== id);
  save(STORE, conversations);
  if (current.id === id) startAnew();
  showList();
}

function startAnew() {
  running?.abort();
  current = begin();
  showTurns();
  showList();
  say("");
}

/** Takes a message back into the box, with all that came after it. */
function edit(index) {
  if (running) return;
  $("message").value = current.turns[index].content;
  current.turns = current.turns.slice(0, index);
  showTurns();
  $("message").focus();
}

function regenerate() {
  if (running) return;
  const last = current.turns.at(-2);
  if (last?.role !== "user") return;
  current.turns = current.turns.slice(0, -2);
  showTurns();
  void ask(last.content);
}

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;

/** Switches an answer between its text and its tokens, each of which tells what else was likely there. */
function probabilitiesButton(turn, body) {
  const toggle = button("Probabilities", () => {
    const isShown = toggle.getAttribute("aria-pressed") === "true";
    toggle.setAttribute("aria-pressed", String(!isShown));
    if (isShown) showMarkdown(body, turn.content);
    else showTokens(body, turn.tokens);
  });
  toggle.setAttribute("aria-pressed", "false");
  return toggle;
}

function showTokens(body, tokens) {
  const line = element("p", "tokens");
  const told = element("p", "alternatives", "Arrow keys or the pointer show what else was likely.");
  told.setAttribute("aria-live", "polite");
  line.tabIndex = 0;
  line.setAttribute("role", "group");
  line.setAttribute("aria-label", "Tokens of the answer");
  let at = -1;
  const tell = (index) => {
    at = index;
    const [text, logprob, top] = tokens[index];
    const others = top.map(([other, value]) => `${JSON.stringify(other)} ${percent(value)}`);
    told.textContent = `${JSON.stringify(text)} ${percent(logprob)}; likeliest: ${others.join(", ")}`;
  };
  tokens.forEach(([text, logprob], index) => {
    const doubt = logprob < Math.log(0.2) ? "doubtful" : logprob < Math.log(0.6) ? "unsure" : "";
    const span = element("span", doubt, text);
    span.addEventListener("pointerenter", () => tell(index));
    line.append(span);
  });
  line.addEventListener("keydown", ({ key }) => {
    if (key === "ArrowRight" && at + 1 < tokens.length) tell(at + 1);
    if (key === "ArrowLeft" && at > 0) tell(at - 1);
    if (key === "Home") tell(0);
  });
  body.replaceChildren(line, told);
}

/** Events of a response's stream, parsed. */
async function* events(response) {
  const decoder = new TextDecoderStream();
  const reader = response.body.pipeThrough(decoder).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the answer was cut off");
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      const data = part.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function findModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) await refuse(response);
  model = (await response.json()).data[0].id;
  $("model").textContent = model;
}

function requestOf(turns) {
  const system = $("system").value.trim();
  const number = (id) => Number($(id).value);
  const seed = $("seed").value.trim();
  return {
    model,
    messages: [
      ...(system === "" ? [] : [{ role: "system", content: system }]),
      ...turns.map(({ role, content }) => ({ role, content })),
    ],
    temperature: number("temperature"),
    top_p: number("top_p"),
    top_k: number("top_k"),
    min_p: number("min_p"),
    repetition_penalty: number("repetition_penalty"),
    max_tokens: number("tokens"),
    ...(seed === "" ? {} : { seed: Number(seed) }),
    ...($("json").checked ? { response_format: { type: "json_object" } } : {}),
    ...($("probabilities").checked ? { logprobs: true, top_logprobs: 5 } : {}),
    stream: true,
    stream_options: { include_usage: true },
  };
}

async function ask(text) {
  // "New chat" puts another one in its place; this answer then goes to the one that it was asked in.
  const own = current;
  own.turns.push({ role: "user", content: text });
  addTurn(own.turns.at(-1), own.turns.length - 1);
  const answer = { role: "assistant", content: "" };
  const body = addTurn(answer, -1);
  running = new AbortController();
  const { signal } = running;
  $("send").textContent = "Stop";
  turnsBox.setAttribute("aria-busy", "true");
  say("Waiting for the model …");
  const tokens = [];
  let count = 0;
  let firstAt = 0;
  let isDrawn = true;
  const draw = () => {
    isDrawn = true;
    showMarkdown(body, answer.content);
    turnsBox.scrollTop = turnsBox.scrollHeight;
  };
  try {
    if (model === undefined) await findModel();
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      signal,
      body: JSON.stringify(requestOf(own.turns)),
    });
    if (!response.ok) await refuse(response);
    for await (const event of events(response)) {
      const [choice] = event.choices;
      const piece = choice?.delta.content;
      for (const each of choice?.logprobs?.content ?? [])
        tokens.push([
          each.token,
          each.logprob,
          each.top_logprobs.map(({ token, logprob }) => [token, logprob]),
        ]);
      if (piece) {
        if (firstAt === 0) firstAt = performance.now();
        say("Answering …");
        answer.content += piece;
        // As often as the screen is drawn, not as often as tokens come.
        if (isDrawn) requestAnimationFrame(draw);
        isDrawn = false;
      }
      if (event.usage) count = event.usage.completion_tokens;
    }
    const seconds = (performance.now() - firstAt) / 1000;
    const rate = count > 1 && seconds > 0 ? `, ${((count - 1) / seconds).toFixed(1)} tokens/s` : "";
    say(`${count} tokens${rate}`);
  } catch (error) {
    if (signal.aborted) say("Stopped");
    else say(`Failed: ${error.message}`, true);
  }
  if (answer.content === "") {
    // A question without answer would make the next one a second question in a row.
    own.turns.pop();
    if (own === current && $("message").value === "") $("message").value = text;
  } else {
    if (tokens.length > 0) answer.tokens = tokens;
    own.turns.push(answer);
  }
  running = undefined;
  $("send").textContent = "Send";
  turnsBox.setAttribute("aria-busy", "false");
  if (own !== current) {
    say("");
    if (own.turns.length > 0) save(STORE, conversations);
    return;
  }
  showTurns();
  keep();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) {
    running.abort();
    return;
  }
  const text = $("message").value.trim();
  if (text === "") return;
  $("message").value = "";
  void ask(text);
});
// While an answer runs the button stops it, whether or not a message is written.
$("send").addEventListener("click", (event) => {
  if (!running) return;
  event.preventDefault();
  running.abort();
});
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) $("form").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("reset").addEventListener("click", () => {
  startAnew();
  $("message").focus();
});
$("key").addEventListener("change", () => {
  findModel().then(
    () => say(""),
    (error) => say(`Failed: ${error.message}`, true),
  );
});

// Settings stay in this browser too, but never the key.
const kept = load(SETTINGS, {});
for (const id of [...NUMBERS, "system"]) if (typeof kept[id] === "string") $(id).value = kept[id];
for (const id of CHECKS) $(id).checked = kept[id] === true;
document.addEventListener("change", () => {
  const values = [...NUMBERS, "system"].map((id) => [id, $(id).value]);
  const checks = CHECKS.map((id) => [id, $(id).checked]);
  save(SETTINGS, Object.fromEntries([...values, ...checks]));
});

showList();
findModel().catch((error) => say(`Failed: ${error.message}`, true));
