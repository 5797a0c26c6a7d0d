// One rollout: drawn while it is played, and gone through step by step.

import { ask, colour, cssColour, draw, make, number, setUpTheme } from "./common.js";

const FRAME_MS = 140, DRAW_EVERY_MS = 250, MAX_BARS = 24;
const MARGIN = { l: 78, r: 64, t: 8, b: 36 };
const at = (id) => document.getElementById(id);
const run = new URLSearchParams(location.search).get("run") || "";

let start = null, steps = [], end = null, now = 0, timer = null, asked = null, drawnAt = 0, chartsDrawn = false;

// ------------------------------------------------------------------ playing

async function play() {
  asked?.abort();
  asked = new AbortController();
  stop();
  [start, steps, end, now, chartsDrawn] = [null, [], null, 0, false];
  say("");
  at("stage").replaceChildren(make("p", { class: "quiet" }, "Loading the policy and its environment …"));
  at("play").disabled = true;
  const epoch = at("epoch").value;
  const options = { run, seed: Number(at("seed").value) || 0, greedy: at("how").value === "greedy", epoch: epoch === "" ? null : Number(epoch) };
  try {
    const answer = await fetch("/api/rollout", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(options), signal: asked.signal });
    if (!answer.ok) throw new Error((await answer.json()).error);
    await lines(answer.body, take);
    if (!start) throw new Error("the rollout ended before it began");
    drawCharts();
    show(now);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
    if (!start) at("stage").replaceChildren(make("p", { class: "quiet" }, "No rollout."));
  } finally {
    at("play").disabled = false;
  }
}

async function lines(stream, take) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) take(JSON.parse(part));
  }
}

function take(line) {
  if (line.kind === "error") throw new Error(line.text);
  if (line.kind === "start") start = line;
  if (line.kind === "end") end = line;
  if (line.kind !== "step") return;
  const follows = now >= steps.length - 1 && !timer; // whoever looks at an earlier step is left there
  steps.push(line);
  at("at").max = steps.length - 1;
  if (follows) show(steps.length - 1);
  if (Date.now() - drawnAt > DRAW_EVERY_MS) drawCharts();
}

function say(text) {
  at("trouble").replaceChildren(...(text ? [make("p", { class: "card trouble" }, text)] : []));
}

// ------------------------------------------------------------------ one step

function show(step) {
  if (!steps.length) return;
  now = Math.min(Math.max(step, 0), steps.length - 1);
  const seen = steps[now];
  at("at").value = now;
  const image = Object.values(seen.obs).find((obs) => obs.image)?.image;
  stage(seen.frame || image);
  const over = end && now === steps.length - 1 ? { terminated: "ended here", truncated: "ended here: out of time", cut: "cut here" }[end.ended] : "";
  at("facts").replaceChildren(...[
    ["step", `${now + 1} / ${steps.length}`], ["reward", number(seen.reward)], ["return so far", number(seen.return)],
    ["value", seen.value ? number(seen.value.at(-1)) : "–"],
  ].map(([name, value]) => make("div", {}, make("b", {}, value), name)), over ? make("div", { style: "grid-column:1/-1", class: "state" }, over) : "");
  at("entropy").textContent = seen.entropy === null ? "" : `entropy ${number(seen.entropy, 3)} nats`;
  at("actions").replaceChildren(seen.probs ? bars(seen) : numbers(seen));
  at("observation").replaceChildren(...Object.entries(seen.obs).map(observation));
  if (chartsDrawn) for (const chart of ["values", "probs", "rewards"]) mark(at(chart));
}

function stage(picture) {
  let image = at("stage").querySelector("img");
  if (!picture) {
    return at("stage").replaceChildren(make("p", { class: "quiet" }, start.renders ? "" : "This environment does not draw itself (render_mode=\"rgb_array\"): its observations are below."));
  }
  if (!image) {
    image = make("img", { alt: "the environment" });
    image.addEventListener("load", () => image.classList.toggle("smooth", image.naturalWidth > 220));
    at("stage").replaceChildren(image);
  }
  image.src = `data:image/png;base64,${picture}`;
}

// Labels of the entries of an action vector.
function labels() {
  const { kind, sizes } = start.actions;
  if (kind === "multidiscrete") return sizes.flatMap((size, i) => Array.from({ length: size }, (_, j) => `${i}: ${j}`));
  return Array.from({ length: sizes[0] }, (_, i) => (kind === "multibinary" ? `bit ${i}` : kind === "discrete" ? `action ${i}` : `dimension ${i}`));
}

function bars(seen) {
  const names = labels();
  const order = [...names.keys()].sort((a, b) => seen.probs[b] - seen.probs[a]);
  const kept = names.length <= MAX_BARS ? [...names.keys()] : order.slice(0, MAX_BARS).sort((a, b) => a - b);
  const rows = kept.flatMap((i) => [
    make("span", { class: `${seen.vector[i] > 0.5 ? "taken" : ""} ${seen.legal && !seen.legal[i] ? "illegal" : ""}` }, names[i], seen.vector[i] > 0.5 ? " ✓" : ""),
    make("div", { class: "track" }, make("i", { style: `left:0;width:${100 * seen.probs[i]}%` })),
    make("span", { class: "n" }, `${(100 * seen.probs[i]).toFixed(1)} %`),
    make("span", { class: "n quiet" }, seen.q_actions ? number(seen.q_actions[i], 3) : ""),
  ]);
  return make("div", { class: "bars" }, ...["", "probability", "", seen.q_actions ? "Q" : ""].map((each) => make("span", { class: "head n" }, each)), ...rows,
    kept.length < names.length ? make("span", { class: "faint", style: "grid-column:1/-1" }, `the ${kept.length} likeliest of ${names.length}`) : "");
}

// A vector in [-1, 1], with the mode as a thin line.
function numbers(seen) {
  const names = labels().slice(0, MAX_BARS);
  const rows = names.flatMap((name, i) => {
    const left = 50 + 50 * Math.min(seen.vector[i], 0), width = 50 * Math.abs(seen.vector[i]);
    return [make("span", { class: "taken" }, name), make("div", { class: "track" }, make("i", { style: `left:${left}%;width:${Math.max(width, 0.5)}%` }),
      make("i", { style: `left:${49.6 + 50 * seen.mode[i]}%;width:2px;background:var(--ink)` })), make("span", { class: "n" }, number(seen.vector[i], 3)), make("span")];
  });
  return make("div", { class: "bars" }, ...["", "−1 to 1; the line is the mode", "", ""].map((each) => make("span", { class: "head" }, each)), ...rows);
}

function observation([name, { shape, values, image }]) {
  const size = shape.length ? shape.join(" × ") : "1";
  const head = make("div", { class: "quiet", style: "margin:4px 0" }, make("b", {}, name), make("span", { class: "faint" }, ` ${size}`));
  if (image) return make("div", {}, head, make("img", { src: `data:image/png;base64,${image}`, style: "width:160px;image-rendering:pixelated", alt: name }));
  if (!values) return make("div", {}, head, make("span", { class: "faint" }, "too large to list"));
  const cells = values.map((value) => make("td", { class: "value number" }, number(value, 3)));
  const rows = Array.from({ length: Math.ceil(cells.length / 8) }, (_, i) => make("tr", {}, ...cells.slice(8 * i, 8 * i + 8)));
  return make("div", {}, head, make("table", { style: "width:auto" }, make("tbody", {}, ...rows)));
}

// ------------------------------------------------------------------ all steps

const line = () => [{ type: "line", x0: now, x1: now, y0: 0, y1: 1, yref: "paper", line: { color: cssColour("--ink"), width: 1.2 } }];
const mark = (chart) => chart.data && window.Plotly.relayout(chart, { shapes: line() });

function drawCharts() {
  drawnAt = Date.now();
  if (!start || !steps.length) return;
  chartsDrawn = true;
  const t = steps.map((step) => step.t);
  // The same room to both sides, so that a step is at the same place in all three.
  const x = { title: { text: "timestep" }, range: [-0.6, steps.length - 0.4], automargin: false };
  drawValues(t, x);
  drawActions(t, x);
  const soft = cssColour("--soft");
  draw(at("rewards"), [
    { type: "bar", x: t, y: steps.map((step) => step.reward), name: "reward", marker: { color: colour(0) }, hovertemplate: "%{y:.4g}" },
    { x: t, y: steps.map((step) => step.return), name: "return so far", line: { color: soft, width: 1.5, shape: "hv" }, hovertemplate: "%{y:.4g}" },
  ], { xaxis: x, yaxis: { title: { text: "reward" }, automargin: false }, shapes: line(), bargap: 0.35, margin: MARGIN });
  at("reward-key").replaceChildren(make("span", {}, make("i", { class: "box", style: `background:${colour(0)}` }), "reward of each step"), make("span", {}, make("i", { style: `border-color:${soft}` }), "return so far"));
  for (const chart of ["values", "probs", "rewards"]) listen(at(chart));
}

function drawValues(t, x) {
  if (!start.gammas.length) return at("gammas").replaceChildren("This agent has no critics: it only imitates.");
  const traces = start.gammas.map((gamma, i) => ({
    x: t, y: steps.map((step) => step.value[i]), name: `γ = ${gamma}`, line: { color: colour(i), width: i === start.gammas.length - 1 ? 2.4 : 1.3 }, hovertemplate: "%{y:.4g}",
  }));
  if (end && end.ended !== "cut") {
    const main = start.gammas.length - 1, came = new Array(steps.length);
    let rest = 0;
    for (let i = steps.length - 1; i >= 0; i -= 1) came[i] = rest = steps[i].reward + start.gammas[main] * rest;
    traces.push({ x: t, y: came, name: "what came", line: { color: colour(main), width: 1.6, dash: "dot" }, hovertemplate: "%{y:.4g}" });
  }
  at("gammas").replaceChildren(...start.gammas.map((gamma, i) => make("span", {}, make("i", { style: `border-color:${colour(i)}` }), `γ = ${gamma}${i === start.gammas.length - 1 ? ", which acts" : ""}`)));
  draw(at("values"), traces, { xaxis: x, yaxis: { title: { text: "discounted sum of rewards" }, automargin: false }, shapes: line(), margin: MARGIN });
}

function drawActions(t, x) {
  const continuous = !steps[0].probs;
  const names = labels();
  at("probs-title").textContent = continuous ? "Actions" : "Probability of each action";
  if (continuous) {
    const traces = names.slice(0, 7).map((name, i) => ({ x: t, y: steps.map((step) => step.vector[i]), name, line: { color: colour(i), width: 1.5 }, hovertemplate: "%{y:.3g}" }));
    return draw(at("probs"), traces, { xaxis: x, yaxis: { title: { text: "action" }, range: [-1.05, 1.05], automargin: false }, shapes: line(), margin: MARGIN, showlegend: names.length > 1, legend: { orientation: "h", y: 1.15 } });
  }
  const ground = cssColour("--ground");
  const taken = { x: [], y: [] };
  for (const step of steps) step.vector.forEach((on, i) => { if (on > 0.5) { taken.x.push(step.t); taken.y.push(i); } });
  draw(at("probs"), [
    { type: "heatmap", x: t, y: [...names.keys()], z: names.map((_, i) => steps.map((step) => step.probs[i])), zmin: 0, zmax: 1,
      colorscale: [[0, ground], [1, colour(0)]], colorbar: { thickness: 9, x: 1.01, xpad: 0, outlinewidth: 0, tickformat: ".0%", tickfont: { size: 11 } }, hovertemplate: "step %{x}, %{y}: %{z:.1%}<extra></extra>" },
    { ...taken, mode: "markers", marker: { size: 5, color: cssColour("--ink"), symbol: "circle-open", line: { width: 1.3 } }, name: "taken", hoverinfo: "skip" },
  ], { xaxis: x, hovermode: "closest", shapes: line(), margin: MARGIN, yaxis: { title: { text: "" }, automargin: false, tickvals: [...names.keys()].slice(0, 40), ticktext: names, showgrid: false, autorange: "reversed" } });
}

function listen(chart) {
  if (chart.heard) return;
  chart.heard = true;
  chart.on("plotly_click", ({ points }) => { stop(); show(Math.round(points[0].x)); });
}

// ------------------------------------------------------------------ going through it

function stop() {
  clearInterval(timer);
  timer = null;
  at("run-on").textContent = "▶";
}

function go() {
  if (timer) return stop();
  if (now >= steps.length - 1) now = -1;
  at("run-on").textContent = "❚❚";
  timer = setInterval(() => (now >= steps.length - 1 ? stop() : show(now + 1)), FRAME_MS);
}

async function begin() {
  at("run").textContent = run;
  document.title = `${run} – a rollout`;
  at("back").href = `/#${new URLSearchParams({ run })}`;
  at("epoch").append(make("option", { value: "" }, "newest"));
  try {
    const { policies } = await ask("/api/run", { run });
    for (const epoch of policies.toReversed()) at("epoch").append(make("option", { value: epoch }, `after epoch ${epoch + 1}`));
  } catch (error) {
    return say(error.message);
  }
  await play();
}

setUpTheme(() => { drawCharts(); show(now); });
at("options").addEventListener("submit", (event) => { event.preventDefault(); play(); });
at("run-on").addEventListener("click", go);
at("before").addEventListener("click", () => { stop(); show(now - 1); });
at("after").addEventListener("click", () => { stop(); show(now + 1); });
at("at").addEventListener("input", () => { stop(); show(Number(at("at").value)); });
addEventListener("keydown", (event) => {
  if (/^(INPUT|SELECT)$/.test(event.target.tagName) && event.target.type !== "range") return;
  if (event.key === " " && event.target.tagName !== "BUTTON") { event.preventDefault(); go(); }
  if (event.key === "ArrowLeft" && event.target.type !== "range") { stop(); show(now - 1); }
  if (event.key === "ArrowRight" && event.target.type !== "range") { stop(); show(now + 1); }
});
addEventListener("pagehide", () => asked?.abort());
begin();
