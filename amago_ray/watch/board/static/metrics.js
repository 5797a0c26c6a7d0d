// Which charts there are: the names of metrics in groups, with titles and units that people read.

import { AVERAGE_RETURN } from "./common.js";

const ATTEMPT = /Attempt (\d+) Success/;
const GAMMA = /^(.*) \(gamma=([^)]+)\)$/;
const UNITS = [
  [/ \(fraction of batch\)$/, "fraction of the batch"],
  [/ \(fraction\)$/, "fraction of the time"],
  [/ \(versions\)$/, "versions"],
  [/ \(s\)$/, "s"],
  [/Frames per Second/, "frames/s"],
  [/Updates per Second/, "updates/s"],
  [/^GB$/, "GB"],
  [/^Pct\. of /, "%"],
  [/Return/, "sum of rewards"],
  [/Episode Length/, "timesteps"],
  [/Success/, "fraction of attempts"],
  [/Entropy|Logprob/, "nats"],
  [/^Timesteps$/, "timesteps"],
  [/^(Trajectories|Total Episodes|Unfinished Rollouts)/, "rollouts"],
  [/^Sequences/, "sequences"],
  [/^(Q\(s,a\)|TD Target|PopArt)/, "scaled return"],
];

function unitOf(text) {
  const found = UNITS.find(([pattern]) => pattern.test(text));
  return found ? found[1] : "";
}

function titleOf(text) {
  let title = text.replace(/ \((fraction|fraction of batch|versions|s)\)$/, "").replace(/^Average Attempt/, "Attempt");
  title = title.replace(/^Average Episode Length/, "Length of rollouts").replace(/^Pct\. of /, "");
  title = title.replace(/^Average First/, "First").replace(/^Average Last/, "Last").replace(/^GB$/, "Stored");
  title = title.replace("Bottom Quintile Total Return", "Return, bottom fifth").replace("Average Total Return", "Return");
  title = title.replace("Total Episodes", "Finished rollouts").replace("Unfinished Rollouts", "Unfinished rollouts");
  return title.replace("per Second", "per second").replace(" (Across All Env Names)", "");
}

// -> [{title, open, cards: [{title, unit, kind, lines: [{name, label, thin, gamma}]}]}]
export function groupsOf(names) {
  const envs = new Set(names.map((name) => name.match(/Average Total Return in (.+)$/)?.[1]).filter(Boolean));
  const only = envs.size === 1 ? ` in ${[...envs][0]}` : null;
  const groups = new Map();
  for (const title of ["Returns", "Speed", "Learning", "Values and policy", "Exploration", "Replay"]) groups.set(title, new Map());
  const add = (group, key, card, line) => {
    if (!groups.has(group)) groups.set(group, new Map());
    const cards = groups.get(group);
    if (!cards.has(key)) cards.set(key, { kind: "curves", lines: [], ...card });
    cards.get(key).lines.push(line);
  };
  for (const name of names) {
    const section = name.slice(0, name.indexOf("/"));
    const full = name.slice(section.length + 1);
    const rest = only && full.endsWith(only) ? full.slice(0, -only.length) : full;
    const gamma = rest.match(GAMMA);
    const attempt = rest.match(ATTEMPT);
    const label = { val: "validation", collect: "collecting" }[section] || "";
    const line = { name, label, thin: section === "collect", gamma: gamma?.[2] };
    if (section === "collect" || section === "val") {
      if (full === AVERAGE_RETURN) add("Returns", "Return", { title: "Return", unit: unitOf(rest) }, line);
      else if (only && rest === "Average Total Return") continue; // the same again
      else if (attempt) {
        const where = rest.slice(rest.indexOf("Success") + 7);
        add("Returns", `attempts${where}`, { title: `Success by attempt${where}`, unit: "fraction of attempts", kind: "attempts" },
          { ...line, attempt: Number(attempt[1]) });
      } else if (/per Second|^Time |Trajectories|Failures|Deaths/.test(rest)) {
        add("Speed", rest, { title: titleOf(rest), unit: unitOf(rest) }, { ...line, label: "", thin: false });
      } else if (/^Exploration/.test(rest)) {
        add("Exploration", rest, { title: titleOf(rest), unit: "" }, { ...line, label: "", thin: false });
      } else {
        const group = !only && / in /.test(rest) ? "By environment" : "Returns";
        add(group, rest, { title: titleOf(rest), unit: unitOf(rest) }, line);
      }
    } else if (gamma) {
      add("Values and policy", gamma[1], { title: titleOf(gamma[1]), unit: unitOf(gamma[1]), kind: "gammas" }, line);
    } else if (section === "rate" || /per Second|^Time /.test(rest)) {
      add("Speed", rest, { title: titleOf(rest), unit: unitOf(rest) }, line);
    } else {
      const group = { train: "Learning", replay: "Replay" }[section] || section;
      add(group, rest, { title: titleOf(rest), unit: unitOf(rest) }, line);
    }
  }
  const found = [...groups].map(([title, cards]) => ({ title, open: ["Returns", "Speed", "Learning"].includes(title), cards: [...cards.values()] }));
  const first = (card) => (card.title === "Return" ? 0 : card.kind === "attempts" ? 1 : card.unit === "rollouts" ? 3 : 2);
  for (const group of found) group.cards.sort((a, b) => first(a) - first(b));
  return found.filter((group) => group.cards.length);
}
