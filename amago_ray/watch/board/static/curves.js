// The page of curves. Only charts that can be seen are asked for, and only when there is something new.

import { ask, clear, colour, cssColour, dash, draw, make, number, plain } from "./common.js";
import { groupsOf } from "./metrics.js";

export const AXES = {
  total_frames: ["frames", "environment frames"],
  gradient_steps: ["updates", "gradient updates"],
  epoch: ["epochs", "epoch"],
  wall_s: ["time", "training time"],
};
const POINTS = 400, NAMES_PER_QUESTION = 24;

export class Curves {
  constructor(element, options) {
    this.element = element;
    this.options = options; // {axis, smooth, search}, shared with the page
    this.cards = [];
    this.known = "";
    this.busy = false;
    this.observer = new IntersectionObserver((entries) => {
      for (const entry of entries) entry.target.card.visible = entry.isIntersecting;
      this.update();
    }, { rootMargin: "250px" });
  }

  // runs: [{id, slot, version}] to be shown
  async show(runs) {
    this.runs = runs;
    const names = runs.length ? await ask("/api/names", { run: runs.map((run) => run.id) }) : [];
    const known = JSON.stringify([names, runs.map((run) => run.id), this.options.search]);
    if (known !== this.known) {
      this.known = known;
      this.build(names);
    }
    await this.update();
  }

  build(names) {
    this.observer.disconnect();
    const closed = new Set([...this.element.querySelectorAll("details:not([open])")].map((each) => each.dataset.title));
    const opened = new Set([...this.element.querySelectorAll("details[open]")].map((each) => each.dataset.title));
    clear(this.element);
    this.cards = [];
    const wanted = this.options.search.toLowerCase();
    for (const group of groupsOf(names)) {
      const cards = group.cards.filter((card) => !wanted || card.lines.some((line) => line.name.toLowerCase().includes(wanted)));
      if (!cards.length) continue;
      const open = wanted || opened.has(group.title) || (group.open && !closed.has(group.title));
      const grid = make("div", { class: "grid" }, ...cards.map((card) => this.card(card)));
      this.element.append(make("details", { class: "group", open: Boolean(open), "data-title": group.title },
        make("summary", {}, group.title, make("span", { class: "count" }, `${cards.length}`)), grid));
    }
    if (!this.cards.length) this.element.append(make("p", { class: "empty" }, names.length ? "No metric has this in its name." : "Nothing has been logged yet: the curves begin with the first epoch."));
  }

  card(spec) {
    const chart = make("div", { class: "chart" });
    const newest = make("span", { class: "unit" });
    const key = make("div", { class: "key" });
    const element = make("article", { class: "card", title: spec.lines.map((line) => line.name).join("\n") },
      make("div", { class: "chart-head" }, make("h3", {}, spec.title), newest), key, chart);
    const card = { spec, chart, newest, key, visible: false, drawn: "" };
    element.card = card;
    this.cards.push(card);
    this.observer.observe(element);
    return element;
  }

  // What a drawn chart depends on.
  get wantedVersion() {
    const { axis, smooth } = this.options;
    return JSON.stringify([axis, smooth, document.documentElement.dataset.theme, this.runs.map((run) => [run.id, run.version, run.slot])]);
  }

  async update() {
    if (this.busy) return void (this.again = true);
    this.busy = true;
    try {
      do {
        this.again = false;
        const wanted = this.wantedVersion;
        const due = this.cards.filter((card) => card.visible && card.drawn !== wanted);
        for (const batch of batches(due)) {
          const names = [...new Set(batch.flatMap((card) => this.lines(card).map((line) => line.name)))];
          const { axis } = this.options;
          const answer = await ask("/api/curves", { run: this.runs.map((run) => run.id), name: names, axis, points: POINTS });
          for (const card of batch) {
            this.draw(card, answer, axis);
            card.drawn = wanted;
          }
        }
      } while (this.again);
    } finally {
      this.busy = false;
    }
  }

  // Of several runs, only the discount that acts is compared.
  lines(card) {
    if (card.spec.kind !== "gammas" || this.runs.length === 1) return card.spec.lines;
    const largest = Math.max(...card.spec.lines.map((line) => Number(line.gamma)));
    return card.spec.lines.filter((line) => Number(line.gamma) === largest);
  }

  draw(card, answer, axis) {
    if (!card.chart.isConnected) return;
    if (card.spec.kind === "attempts") return this.drawAttempts(card, answer);
    const lines = this.lines(card);
    const [x, title] = scaled(answer, axis);
    const traces = [];
    const entries = new Map();
    let newest = null;
    for (const run of this.runs) {
      lines.forEach((line, i) => {
        const found = answer[run.id]?.curves[line.name];
        if (!found?.x.length) return;
        const byGamma = card.spec.kind === "gammas" && this.runs.length === 1;
        const paint = byGamma ? colour(i) : colour(run.slot);
        const label = line.gamma ? `γ = ${line.gamma}` : line.label;
        if (label && lines.length > 1 || byGamma) entries.set(label, [byGamma ? paint : cssColour("--soft"), line.thin]);
        traces.push(...linesOf(found, x, paint, {
          name: plain([this.runs.length > 1 ? run.id : "", label].filter(Boolean).join(", ") || card.spec.title),
          thin: line.thin && lines.length > 1, smooth: this.options.smooth, dash: dash(run.slot),
        }));
        if (!line.thin || lines.length === 1) newest = lastOf(found.y) ?? newest;
      });
    }
    card.newest.textContent = this.runs.length === 1 && card.spec.kind !== "gammas" ? number(newest) : "";
    card.key.replaceChildren(...[...entries].map(([label, [paint, thin]]) =>
      make("span", {}, make("i", { class: thin ? "thin" : "", style: `border-color:${paint}` }), label)));
    if (card.spec.kind === "gammas" && this.runs.length > 1) card.key.replaceChildren(`γ = ${lines[0].gamma}`);
    draw(card.chart, traces, { xaxis: { title: { text: title } }, yaxis: { title: { text: card.spec.unit } } });
  }

  drawAttempts(card, answer) {
    const traces = [];
    for (const run of this.runs) {
      const found = (thin) => card.spec.lines.filter((line) => line.thin === thin && answer[run.id]?.curves[line.name]?.x.length);
      const lines = (found(false).length ? found(false) : found(true)).sort((a, b) => a.attempt - b.attempt);
      for (const [moment, opacity, of] of [["first", 0.35, firstOf], ["newest", 1, lastOf]]) {
        traces.push({
          x: lines.map((line) => line.attempt), y: lines.map((line) => of(answer[run.id].curves[line.name].y)), opacity,
          name: plain(`${this.runs.length > 1 ? `${run.id}, ` : ""}${moment}`), mode: "lines+markers",
          line: { color: colour(run.slot), width: 2, dash: dash(run.slot) }, marker: { size: 6 },
          hovertemplate: "%{y:.2f}",
        });
      }
    }
    const soft = cssColour("--soft");
    card.key.replaceChildren(...[["newest", 1], ["first", 0.35]].map(([label, opacity]) =>
      make("span", {}, make("i", { style: `border-color:${soft};opacity:${opacity}` }), label)));
    draw(card.chart, traces, {
      xaxis: { title: { text: "attempt at the same task" }, dtick: 1 },
      yaxis: { title: { text: card.spec.unit }, range: [-0.04, 1.04] },
    });
  }
}

function* batches(cards) {
  let batch = [], names = 0;
  for (const card of cards) {
    batch.push(card);
    names += card.spec.lines.length;
    if (names >= NAMES_PER_QUESTION) {
      yield batch;
      [batch, names] = [[], 0];
    }
  }
  if (batch.length) yield batch;
}

const lastOf = (values) => values.findLast((value) => value !== null) ?? null;
const firstOf = (values) => values.find((value) => value !== null) ?? null;

// A function of the axis' numbers, and its title with the unit.
function scaled(answer, axis) {
  const title = AXES[axis][1];
  if (axis !== "wall_s") return [(x) => x, title];
  let longest = 0;
  for (const run of Object.values(answer)) for (const { x } of Object.values(run.curves)) longest = Math.max(longest, x.at(-1) ?? 0);
  const [seconds, unit] = longest < 180 ? [1, "s"] : longest < 3 * 3600 ? [60, "min"] : [3600, "h"];
  return [(x) => x.map((each) => each / seconds), `${title} (${unit})`];
}

// An exponential average that begins without bias; gaps stay gaps.
export function smoothed(values, strength) {
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = strength * sum + (1 - strength) * value;
    weight = strength * weight + (1 - strength);
    return sum / weight;
  });
}

function linesOf(found, x, paint, { name, thin, smooth, dash: pattern }) {
  const few = found.x.length <= 40 && !thin;
  const base = {
    x: x(found.x), name, mode: few || found.x.length === 1 ? "lines+markers" : "lines", marker: { size: 5, color: paint },
    line: { color: paint, width: thin ? 1.1 : 2, dash: pattern }, opacity: thin ? 0.6 : 1, hovertemplate: "%{y:.4g}",
  };
  if (!smooth || found.x.length < 4) return [{ ...base, y: found.y }];
  return [
    { ...base, y: found.y, mode: "lines", opacity: 0.22, line: { ...base.line, width: 1 }, hoverinfo: "skip", hovertemplate: null },
    { ...base, y: smoothed(found.y, smooth), mode: "lines" },
  ];
}
