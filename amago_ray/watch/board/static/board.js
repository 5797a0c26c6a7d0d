// The page of runs: which are chosen, what is looked at, and asking again and again what is new.

import { ask, clear, colour, count, duration, make, number, setUpTheme } from "./common.js";
import { AXES, Curves } from "./curves.js";
import { glance, Media, Processes, Replay, Settings, stateOf, Time } from "./panels.js";

const EVERY_MS = 2000;
const TABS = { curves: "Curves", time: "What bounds it", processes: "Processes", replay: "Replay", settings: "Settings", media: "Videos" };
const PANELS = { time: Time, processes: Processes, replay: Replay, settings: Settings, media: Media };
const at = (id) => document.getElementById(id);

const options = { tab: "curves", axis: "total_frames", smooth: 0, search: "" };
let runs = [], chosen = null, slots = new Map(), panel = null, panelOf = "", trouble = "";

// ------------------------------------------------------------------ what is chosen, kept in the address

function readAddress() {
  const search = new URLSearchParams(location.hash.slice(1));
  if (search.has("run")) chosen = search.getAll("run");
  if (search.get("tab") in TABS) options.tab = search.get("tab");
  if (search.get("axis") in AXES) options.axis = search.get("axis");
  options.smooth = Math.min(Math.max(Number(search.get("smooth")) || 0, 0), 0.99);
}

function writeAddress() {
  const search = new URLSearchParams({ tab: options.tab, axis: options.axis, smooth: options.smooth });
  for (const id of chosen) search.append("run", id);
  history.replaceState(null, "", `#${search}`);
}

function choose(ids) {
  chosen = ids;
  for (const id of [...slots.keys()]) if (!ids.includes(id)) slots.delete(id);
  for (const id of ids) {
    if (slots.has(id)) continue;
    const taken = new Set(slots.values());
    let slot = 0;
    while (taken.has(slot)) slot += 1;
    slots.set(id, slot); // a run keeps its colour while it is chosen
  }
  writeAddress();
}

const shown = () => runs.filter((run) => slots.has(run.id)).map((run) => ({ ...run, slot: slots.get(run.id) }));

const drawn = {};

function changed(what, state) {
  const text = JSON.stringify(state);
  const different = drawn[what] !== text;
  drawn[what] = text;
  return different;
}

// ------------------------------------------------------------------ the list of runs

function drawRuns() {
  const wanted = at("filter").value.toLowerCase();
  const found = runs.filter((run) => run.id.toLowerCase().includes(wanted));
  at("count").textContent = `${found.length} of ${runs.length} runs`;
  const rows = found.map(({ age_s, version, ...run }) => [run, slots.get(run.id), stateOf({ age_s, ...run })]);
  // What has not changed stays: a click or the focus must not lose the element that it is on.
  if (changed("runs", [rows, document.documentElement.dataset.theme])) at("runs").replaceChildren(...found.map(runRow));
}

function runRow(run) {
  const on = slots.has(run.id);
  const paint = on ? colour(slots.get(run.id)) : "";
  const toggle = (event) => {
    event.stopPropagation();
    choose(on ? chosen.filter((id) => id !== run.id) : [...chosen, run.id]);
    redraw();
  };
  const alone = () => { choose([run.id]); redraw(); };
  const about = run.error ? [make("span", { class: "state error" }, run.error)] : [
    make("span", { class: `state ${run.state}` }, run.reason ? run.state : stateOf(run)),
    make("span", {}, `epoch ${count(run.epoch)}/${count(run.epochs)}`),
    make("span", {}, run.val_return ? `val ${number(run.val_return.value)}` : run.collect_return ? `return ${number(run.collect_return.value)}` : ""),
  ];
  const done = run.error ? 0 : Math.min(100 * run.epoch / Math.max(run.epochs, 1), 100);
  return make("div", { class: on ? "run on" : "run", onclick: alone, "data-run": run.id },
    make("button", { class: "swatch", role: "checkbox", "aria-checked": String(on), "aria-label": `show ${run.id}`, title: "show beside the others", style: on ? `background:${paint};border-color:${paint}` : "", onclick: toggle }),
    make("div", {}, make("button", { class: "name", title: "show this run alone" }, run.id), make("div", { class: "about" }, ...about),
      make("div", { class: "bar" }, make("i", { style: `width:${done}%;${on ? `background:${paint}` : ""}` }))));
}

// ------------------------------------------------------------------ tabs and tools

function drawTabs() {
  if (!changed("tabs", [options.tab, shown()[0]?.id])) return;
  const tabs = Object.entries(TABS).map(([tab, title]) => make("button", {
    role: "tab", "aria-selected": String(tab === options.tab), "data-tab": tab,
    onclick: () => { options.tab = tab; writeAddress(); redraw(); },
  }, title));
  const first = shown()[0];
  tabs.push(make("button", { id: "inspect", disabled: !first, onclick: () => { location.href = `/rollout?${new URLSearchParams({ run: first.id })}`; } }, "Watch a rollout →"));
  at("tabs").replaceChildren(...tabs);
}

function tools() {
  const axes = Object.entries(AXES).map(([axis, [label]]) => make("button", {
    "aria-pressed": String(axis === options.axis), "data-axis": axis,
    onclick: (event) => {
      options.axis = axis;
      for (const each of event.target.parentElement.children) each.setAttribute("aria-pressed", String(each === event.target));
      writeAddress();
      panel.update();
    },
  }, label));
  const smooth = make("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: options.smooth });
  smooth.addEventListener("input", () => { options.smooth = Number(smooth.value); writeAddress(); panel.update(); });
  const search = make("input", { type: "search", placeholder: "Filter charts", "aria-label": "Filter charts", value: options.search });
  search.addEventListener("input", () => { options.search = search.value; panel.show(shown()); });
  return make("div", { class: "tools" }, make("label", {}, "Over", make("span", { class: "choice" }, ...axes)), make("label", {}, "Smooth", smooth), search);
}

// ------------------------------------------------------------------ drawing and asking

async function redraw() {
  drawRuns();
  drawTabs();
  await drawView();
}

async function drawView() {
  const view = at("view"), chosenRuns = shown();
  if (!chosenRuns.length) {
    clear(view);
    [panel, panelOf] = [null, ""];
    view.append(make("p", { class: "empty" }, runs.length ? "Choose runs on the left." : "There are no runs in this folder yet. They appear here when they start."));
    return;
  }
  if (panelOf !== options.tab) {
    clear(view);
    panelOf = options.tab;
    const place = make("div", { id: "panel" });
    if (options.tab === "curves") {
      view.append(make("div", { id: "head" }), tools(), place);
      panel = new Curves(place, options);
    } else {
      view.append(place);
      panel = new PANELS[options.tab](place);
    }
  }
  const rows = chosenRuns.map(({ age_s, version, ...run }) => [run, stateOf({ age_s, ...run })]);
  if (options.tab === "curves" && (changed("glance", [rows, document.documentElement.dataset.theme]) || !at("glance"))) {
    at("head").replaceChildren(glance(chosenRuns));
  }
  await attempt(() => panel.show(chosenRuns));
}

function attempt(work) {
  return work().then(() => say(""), (error) => say(error.message));
}

function say(text) {
  if (text === trouble) return;
  trouble = text;
  at("trouble").replaceChildren(...(text ? [make("p", { class: "card trouble" }, text)] : []));
}

let answered = 0;

async function look() {
  const answer = await ask("/api/runs");
  runs = answer.runs;
  answered = Date.now();
  at("where").textContent = answer.folders.join("   ");
  at("pulse").className = "pulse";
  at("pulse").textContent = answer.complete ? "live" : "reading";
  const there = new Set(runs.map((run) => run.id));
  const newest = [...runs].filter((run) => !run.error).sort((a, b) => a.age_s - b.age_s).slice(0, 3).map((run) => run.id);
  if (chosen === null && runs.length) choose(runs.map((run) => run.id).filter((id) => newest.includes(id)));
  else if (chosen !== null) choose(chosen.filter((id) => there.has(id))); // removed runs go
  await redraw();
}

async function forever() {
  for (;;) {
    if (!document.hidden) {
      try {
        await look();
      } catch (error) {
        at("pulse").className = "pulse lost";
        at("pulse").textContent = answered ? `no answer for ${duration((Date.now() - answered) / 1000)}` : "no answer";
      }
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

setUpTheme(redraw);
readAddress();
at("filter").addEventListener("input", drawRuns);
at("none").addEventListener("click", () => { choose([]); redraw(); });
addEventListener("hashchange", () => { readAddress(); choose(chosen ?? []); redraw(); });
if (chosen) choose(chosen);
forever();
