// The other pages: where the time goes, processes, replay, settings, pictures.

import { ask, clear, colour, count, cssColour, draw, duration, make, number, rate } from "./common.js";

const WHAT = {
  environments: "the environments",
  policy: "acting: the policy on the rollout workers",
  replay: "replay: what reads and writes it waits",
  learner: "the learner",
  waiting: "none of them: it waits",
};
const MAX_SHOWN = 6; // runs

export function glance(runs) {
  const head = ["Run", "State", "Epoch", "Frames", "Updates", "Trained for", "Return, collecting", "Validation", "Best", "Bound by"];
  const rows = runs.map((run) => {
    const name = make("td", {}, make("span", { class: "dot", style: `background:${colour(run.slot)}` }), run.id);
    if (run.error) return make("tr", {}, name, make("td", { colspan: head.length - 1, class: "state error" }, run.error));
    const returned = (each) => make("td", { class: "number", title: each ? `after epoch ${each.epoch}` : "" }, number(each?.value));
    const per = (total, each) => make("td", { class: "number" }, count(total), " ", make("span", { class: "rate" }, rate(each)));
    return make("tr", {}, name,
      make("td", {}, make("span", { class: `state ${run.state}` }, stateOf(run)), run.broken ? make("span", { class: "rate" }, ` ${run.broken} lines unreadable`) : null),
      make("td", { class: "number" }, `${count(run.epoch)} of ${count(run.epochs)}`),
      per(run.frames, run.frames_per_s), per(run.updates, run.updates_per_s),
      make("td", { class: "number" }, duration(run.wall_s)),
      returned(run.collect_return), returned(run.val_return), returned(run.best_return),
      make("td", { title: run.bound?.why || "" }, run.bound?.name || "–"));
  });
  const numbers = [2, 3, 4, 5, 6, 7, 8];
  return make("div", { class: "card scroll glance" }, make("table", { id: "glance" },
    make("thead", {}, make("tr", {}, ...head.map((each, i) => make("th", { class: numbers.includes(i) ? "number" : "" }, each)))),
    make("tbody", {}, ...rows)));
}

export function stateOf(run) {
  if (run.killed) return "its process was killed";
  if (run.state === "silent") return `silent for ${duration(run.age_s)}`;
  return run.reason ? `${run.state}: ${run.reason}` : run.state;
}

// Every panel: update(runs) draws what has changed of at most MAX_SHOWN runs.
class Panel {
  constructor(element) {
    this.element = element;
    this.shown = "";
  }

  async show(runs) {
    const readable = runs.filter((run) => !run.error);
    const answers = await this.ask(readable.slice(0, MAX_SHOWN));
    const shown = JSON.stringify([answers, runs.map((run) => [run.id, run.slot]), document.documentElement.dataset.theme]);
    if (shown === this.shown) return;
    this.shown = shown;
    const scrolled = document.scrollingElement.scrollTop;
    clear(this.element);
    this.build(readable.slice(0, MAX_SHOWN), answers);
    if (readable.length > MAX_SHOWN) this.element.append(make("p", { class: "quiet" }, `The first ${MAX_SHOWN} of ${readable.length} runs are shown.`));
    document.scrollingElement.scrollTop = scrolled;
  }

  ask(runs) {
    return Promise.all(runs.map((run) => ask(this.constructor.path, { run: run.id })));
  }

  title(run) {
    return make("h3", {}, make("span", { class: "dot", style: `background:${colour(run.slot)}` }), run.id);
  }
}

export class Time extends Panel {
  static path = "/api/run";

  build(runs, answers) {
    runs.forEach((run, i) => {
      const about = answers[i];
      const card = make("section", { class: "card" }, this.title(run));
      this.element.append(card);
      if (!about.bound) return card.append(make("p", { class: "quiet" }, "It is not known yet: nothing was logged of where the time goes."));
      card.append(make("p", { class: "verdict" }, `Bound by ${WHAT[about.bound.name]}`), make("p", { class: "quiet" }, `${about.bound.why}, over the newest epochs`));
      const grid = make("div", { class: "grid wide" });
      card.append(grid);
      const parts = Object.keys(about.parts);
      this.shares(grid, "Rollout workers", about, parts.slice(0, 4));
      this.shares(grid, "Learner", about, parts.slice(4));
    });
  }

  shares(grid, title, about, parts) {
    const all = Object.keys(about.parts);
    const paint = (part) => cssColour(`--part-${all.indexOf(part)}`);
    const chart = make("div", { class: "chart" });
    grid.append(make("article", { class: "card" }, make("div", { class: "chart-head" }, make("h3", {}, title), make("span", { class: "unit" }, "what is left of 100 % was idle")),
      make("div", { class: "key" }, ...parts.map((part) => make("span", {}, make("i", { class: "box", style: `background:${paint(part)}` }), part))), chart));
    const traces = parts.map((part) => ({
      x: about.epochs, y: about.parts[part].map((share) => 100 * share), name: part, stackgroup: "one", mode: "lines",
      line: { width: 0.5, color: paint(part) }, fillcolor: paint(part), hovertemplate: "%{y:.0f} %",
    }));
    draw(chart, traces, {
      xaxis: { title: { text: "epoch" } }, hovermode: "x unified",
      yaxis: { title: { text: "share of the time (%)" }, range: [0, 101] },
    });
  }
}

export class Processes extends Panel {
  static path = "/api/run";

  build(runs, answers) {
    runs.forEach((run, i) => {
      const about = answers[i];
      const starts = about.events.filter((event) => /^the run (begins|goes on)/.test(event.text));
      const facts = [
        ["processes", starts.length ? starts.at(-1).text.split(" with ")[1] : "not recorded"],
        ["starts", starts.length ? `${starts.length}` : "–"],
        ["deaths of rollout workers", count(about.counts["Worker Deaths"])],
        ["environments rebuilt", count(about.counts["Environment Failures"])],
        ["training states saved", run.saved.length ? `${run.saved.length}, the newest after epoch ${run.saved.at(-1)}` : "none"],
      ];
      const events = about.events.toReversed().map((event) => make("tr", {},
        make("td", { class: "faint" }, new Date(1000 * event.time).toLocaleString()),
        make("td", { class: "number" }, event.epoch === null || event.epoch < 0 ? "–" : `${event.epoch + 1}`),
        make("td", {}, event.text)));
      this.element.append(make("section", { class: "card" }, this.title(run),
        make("table", {}, make("tbody", {}, ...facts.map(([name, value]) => make("tr", {}, make("td", { class: "quiet", style: "width:220px" }, name), make("td", {}, value))))),
        events.length ? make("table", { style: "margin-top:14px" },
          make("thead", {}, make("tr", {}, make("th", { style: "width:190px" }, "When"), make("th", { class: "number", style: "width:80px" }, "After epoch"), make("th", {}, "What happened"))),
          make("tbody", {}, ...events)) : make("p", { class: "quiet" }, "No process of it has died or was restarted, as far as its folder says.")));
    });
  }
}

export class Replay extends Panel {
  static path = "/api/replay";

  build(runs, answers) {
    runs.forEach((run, i) => {
      const about = answers[i];
      const card = make("section", { class: "card" }, this.title(run));
      this.element.append(card);
      if (about.error) card.append(make("p", { class: "state error" }, `It ${about.error}`));
      if (!about.trajectories) return card.append(make("p", { class: "quiet" }, "Nothing is stored in files, or nothing is visible yet."));
      card.append(make("p", { class: "verdict" }, `${count(about.trajectories)} trajectories, ${count(about.timesteps)} timesteps`));
      const grid = make("div", { class: "grid" });
      card.append(grid);
      for (const histogram of about.histograms) this.histogram(grid, histogram, run);
      card.append(make("table", {}, make("thead", {}, make("tr", {}, ...["Environment", "Trajectories", "Mean return", "Mean length"].map((each, j) => make("th", { class: j ? "number" : "" }, each)))),
        make("tbody", {}, ...about.environments.map((env) => make("tr", {}, make("td", {}, env.name), make("td", { class: "number" }, count(env.trajectories)),
          make("td", { class: "number" }, number(env.mean_return)), make("td", { class: "number" }, number(env.mean_length)))))));
    });
  }

  histogram(grid, { title, unit, edges, groups, logarithmic }, run) {
    const paint = (i) => (groups.length > 1 ? colour(i) : colour(run.slot));
    const chart = make("div", { class: "chart" });
    grid.append(make("article", { class: "card" }, make("div", { class: "chart-head" }, make("h3", {}, title)),
      groups.length > 1 ? make("div", { class: "key" }, ...groups.map((group, i) => make("span", {}, make("i", { class: "box", style: `background:${paint(i)}` }), group.name))) : null, chart));
    const middles = edges.slice(1).map((edge, i) => (logarithmic ? Math.sqrt(edge * edges[i]) : (edge + edges[i]) / 2));
    const widths = edges.slice(1).map((edge, i) => edge - edges[i]);
    const traces = groups.map((group, i) => ({
      type: "bar", x: middles, y: group.counts, width: widths, name: group.name, marker: { color: paint(i), line: { width: 0.5, color: cssColour("--card") } },
      hovertemplate: "%{y} at %{x:.4g}",
    }));
    draw(chart, traces, {
      barmode: "stack", hovermode: "closest", bargap: 0, xaxis: { title: { text: unit }, type: logarithmic ? "log" : "linear" },
      yaxis: { title: { text: "trajectories" } },
    });
  }
}

export class Settings extends Panel {
  all = false;
  search = "";

  ask(runs) {
    return runs.length ? ask("/api/settings", { run: runs.map((run) => run.id) }) : [];
  }

  build(runs, rows) {
    const table = make("div", { class: "card scroll" });
    const several = runs.length > 1;
    const search = make("input", { type: "search", placeholder: "Filter settings", value: this.search, "aria-label": "Filter settings" });
    const all = make("input", { type: "checkbox" });
    all.checked = this.all;
    const fill = () => {
      [this.all, this.search] = [all.checked, search.value];
      const kept = rows.filter((row) => (!several || this.all || (row.differs && row.name !== "Experiment.run_name")) && row.name.toLowerCase().includes(this.search.toLowerCase()));
      table.replaceChildren(kept.length ? make("table", {},
        make("thead", {}, make("tr", {}, make("th", {}, "Setting"), ...runs.map((run) => make("th", {}, make("span", { class: "dot", style: `background:${colour(run.slot)}` }), run.id)))),
        make("tbody", {}, ...kept.map((row) => make("tr", { class: several && row.differs ? "differs" : "" }, make("td", {}, row.name),
          ...row.values.map((value) => make("td", { class: "value" }, value ?? "–")))))) : make("p", { class: "quiet" }, several ? "These runs do not differ in this." : "There is no such setting."));
    };
    search.addEventListener("input", fill);
    all.addEventListener("change", fill);
    this.element.append(make("div", { class: "tools" }, search, several ? make("label", {}, all, "also those that are alike") : null), table);
    fill();
  }
}

export class Media extends Panel {
  static path = "/api/run";

  // Only the pictures matter: other news of a run must not start its videos anew.
  async ask(runs) {
    const answers = await super.ask(runs);
    return answers.map(({ media }) => ({ media }));
  }

  build(runs, answers) {
    runs.forEach((run, i) => {
      const figures = answers[i].media.map(({ file, type, time }) => {
        const source = `/media?${new URLSearchParams({ run: run.id, file, time })}`;
        const picture = type.startsWith("video/")
          ? make("video", { src: source, controls: true, loop: true, muted: true, preload: "metadata" })
          : make("img", { src: source, alt: file, loading: "lazy", onload: (event) => event.target.classList.toggle("small", event.target.naturalWidth < 200) });
        return make("figure", { class: "card", style: "margin:0" }, make("a", { href: source, target: "_blank" }, picture),
          make("figcaption", {}, `${file}, ${new Date(1000 * time).toLocaleString()}`));
      });
      this.element.append(make("section", { class: "card" }, this.title(run),
        figures.length ? make("div", { class: "media", style: "margin-top:10px" }, ...figures)
          : make("p", { class: "quiet" }, "No pictures yet. ", make("code", {}, "Experiment.callbacks = [@ValidationVideo]"), " films validation; ", make("code", {}, "amago-ray plot"), " draws curves.")));
    });
  }
}
