"use strict";
// Chat with the server that this page comes from: what it answers, who answered, and how sure the edge was.

const $ = (id) => document.getElementById(id);
const talk = []; // the messages of the chat
const dots = []; // [score, route] of the answers on this page
let policy = null;
let roles = false;
let running = null; // aborts the request that is answered

function headers(more = {}) {
  const key = $("key").value;
  return { ...(key ? { authorization: `Bearer ${key}` } : {}), ...more };
}

function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text; // never markup: it may come from a model
  if (kind) made.className = kind;
  return made;
}

// What the server is

async function look() {
  const reply = await fetch("v1/shadow", { headers: headers() });
  $("key-label").hidden = reply.status !== 401 && !$("key").value;
  if (!reply.ok) {
    $("roles").textContent = reply.status === 401 ? "This server asks for a key." : "The server does not answer.";
    return;
  }
  const found = await reply.json();
  showModels(found.models);
  policy = found.policy ?? null;
  roles = policy !== null;
  $("roles").textContent = roles ? `edge: ${found.edge}  ·  cloud: ${found.cloud}` : "";
  if (found.cloud_is_away) $("roles").append(element("span", "  the cloud is away", "away"));
  showCounts(found.routes ?? []);
  $("policy").hidden = !roles;
  if (roles) draw();
  choose();
}

function showModels(names) {
  const shown = [...$("model").options].map((option) => option.value);
  if (shown.join() === names.join()) return;
  $("model").replaceChildren(...names.map((name) => element("option", name)));
}

function showCounts(routes) {
  const rows = routes.map(({ route, reason, count }) => {
    const row = element("tr");
    row.append(element("td", `${route} (${reason})`), element("td", String(count)));
    return row;
  });
  const total = routes.reduce((sum, { count }) => sum + count, 0);
  const cloud = routes.filter(({ route }) => route === "cloud").reduce((sum, { count }) => sum + count, 0);
  if (total) {
    const row = element("tr");
    row.append(element("td", "sent to the cloud"), element("td", `${Math.round((100 * cloud) / total)} %`));
    rows.push(row);
  }
  if (!rows.length) {
    const row = element("tr");
    row.append(element("td", roles ? "none yet" : "no roles here"));
    rows.push(row);
  }
  $("counts").tBodies[0].replaceChildren(...rows);
}

function choose() {
  $("routes").hidden = !roles || $("model").value !== "routed";
  $("template-label").hidden = $("kind").value !== "text";
}

// The policy's curve

function draw() {
  const { knots, threshold, score, held, kept, errors } = policy;
  $("promise").textContent =
    `${score} ≥ ${threshold.toPrecision(4)} is kept. Of ${held} held-out answers ${kept} were, ${errors} of them wrong.`;
  const scores = [...knots.map(([x]) => x), threshold, ...dots.map(([x]) => x)].filter((x) => x > -1e8);
  const low = Math.min(...scores), high = Math.max(...scores), span = high - low || 1;
  const x = (value) => 34 + (256 * (Math.max(value, low) - low)) / span;
  const y = (value) => 160 - 145 * value;
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    parts.push(shape("line", { x1: 34, x2: 290, y1: y(share), y2: y(share), class: "axis" }));
    parts.push(shape("text", { x: 4, y: y(share) + 3 }, `${100 * share} %`));
  }
  const ends = [[low, knots[0][1]], ...knots, [high, knots[knots.length - 1][1]]];
  parts.push(shape("polyline", { points: ends.map(([a, b]) => `${x(a)},${y(b)}`).join(" "), class: "line" }));
  parts.push(shape("line", { x1: x(threshold), x2: x(threshold), y1: 12, y2: 160, class: "limit" }));
  const side = x(threshold) > 162 ? { x: x(threshold) - 4, "text-anchor": "end" } : { x: x(threshold) + 4 };
  parts.push(shape("text", { ...side, y: 20 }, `threshold ${threshold.toPrecision(3)}`));
  parts.push(shape("text", { x: 34, y: 174 }, low.toPrecision(3)));
  parts.push(shape("text", { x: 290, y: 174, "text-anchor": "end" }, high.toPrecision(3)));
  parts.push(shape("text", { x: 162, y: 186, "text-anchor": "middle" }, "score: P(error) of an answer"));
  for (const [value, route] of dots) {
    parts.push(shape("circle", { cx: x(value), cy: y(error(value)), r: 4, class: route }));
  }
  $("curve").replaceChildren(...parts);
}

function error(value) {
  const { knots } = policy;
  if (value <= knots[0][0]) return knots[0][1];
  for (let i = 1; i < knots.length; i++) {
    const [[a, p], [b, q]] = [knots[i - 1], knots[i]];
    if (value <= b) return p + ((q - p) * (value - a)) / (b - a);
  }
  return knots[knots.length - 1][1];
}

function shape(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// One question

async function ask(text) {
  const chat = $("kind").value === "chat";
  const turn = element("li"), answer = element("div", "", "answer"), notes = element("div", "", "notes");
  turn.append(element("div", text, "asked"), answer, notes);
  $("turns").append(turn);
  const body = {
    model: $("model").value,
    temperature: Number($("temperature").value),
    max_tokens: Number($("most").value),
    stream: true,
  };
  if (chat) body.messages = [...talk, { role: "user", content: text }];
  else body.prompt = $("template").value.replaceAll("\\n", "\n").replace("{}", () => text);
  const began = performance.now();
  const told = {};
  let first = null, said = "";
  running = new AbortController();
  busy(true);
  try {
    const route = $("routes").hidden ? "auto" : document.querySelector("input[name=route]:checked").value;
    const reply = await fetch(chat ? "v1/chat/completions" : "v1/completions", {
      method: "POST",
      headers: headers({ "content-type": "application/json", "x-shadow-route": route }),
      body: JSON.stringify(body),
      signal: running.signal,
    });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    for await (const event of events(reply)) {
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) {
        first ??= performance.now();
        said += (chat ? choice.delta.content : choice.text) ?? "";
        Object.assign(told, choice.shadow ?? {});
      }
      answer.textContent = said.trimStart();
      if (told.route) answer.className = `answer ${told.route}`;
      $("turns").scrollTop = $("turns").scrollHeight;
    }
    if (chat) talk.push({ role: "user", content: text }, { role: "assistant", content: said });
  } catch (problem) {
    answer.classList.add("wrong");
    answer.textContent = `${said}\n${problem.name === "AbortError" ? "stopped" : problem.message}`.trim();
  }
  show(notes, told, first === null ? null : first - began, performance.now() - began);
  busy(false);
  if (told.score !== undefined && told.route) dots.push([told.score, told.route]);
  look();
}

function show(notes, told, first, whole) {
  const words = [];
  if (told.reason) words.push(told.reason.replaceAll("-", " "));
  if (told.score !== undefined) {
    words.push(`score ${told.score.toPrecision(3)} (threshold ${told.threshold.toPrecision(3)})`);
    words.push(`P(error) ${(100 * told.error_probability).toFixed(0)} %`);
  }
  if (told.handed_over) words.push(`${told.handed_over} tokens handed over`);
  if (told.adapter) words.push(`adapter ${told.adapter}`);
  if (first !== null) words.push(`first word after ${first.toFixed(0)} ms`);
  words.push(`${whole.toFixed(0)} ms`);
  if (told.route) notes.append(element("span", told.route, `badge ${told.route}`));
  notes.append(words.join(" · "));
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block === "data: [DONE]") return;
      if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
    }
  }
}

function busy(is) {
  $("send").disabled = is;
  $("stop").hidden = !is;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || $("send").disabled) return;
  $("text").value = "";
  ask(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  talk.length = dots.length = 0;
  $("turns").replaceChildren();
  look();
});
for (const id of ["model", "kind"]) $(id).addEventListener("change", choose);
$("key").addEventListener("change", look);
setInterval(() => document.hidden || look(), 2000);
look();
