"use strict";
// Draws the figures, the map and the readers. Whatever comes from the record is set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("record").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true,
    displayModeBar: false, // the figures for a paper are files beside the page
  };

  // --- colours ------------------------------------------------------------------------------

  const named = /^var\((--[a-z0-9]+)\)$/;
  function coloured(value, style) {
    if (typeof value === "string") {
      const found = named.exec(value);
      return found ? style.getPropertyValue(found[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, style)]));
    }
    return value;
  }

  async function draw(place, figure) {
    const { data: traces, layout } = coloured(figure, getComputedStyle(document.documentElement));
    await Plotly.react(place, traces, { ...layout, autosize: true }, config);
    place.dataset.drawn = dark.matches ? "dark" : "light";
  }

  async function drawAll() {
    for (const place of document.querySelectorAll("[data-plot]")) await draw(place, data.plots[place.dataset.plot]);
    if (map) await map.show();
  }

  // --- the map ------------------------------------------------------------------------------

  const decoded = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const rating = (byte, [low, high]) => (byte === 0 ? null : low + ((byte - 1) / 250) * (high - low));
  // Cividis, told apart by everybody; in the dark its dark end is lighter than the page.
  const ratings = [[0, "var(--low)"], [0.35, "var(--lower)"], [0.7, "var(--higher)"], [1, "var(--high)"]];
  // From the last measure, the first answer's rating, to the first, the outcome's.
  const change = {
    at: (m, i, scale) => { const before = m[m.length - 1][i]; return m[0][i] && before ? rating(m[0][i], scale) - rating(before, scale) : null; },
    // Orange for worse, blue for better: told apart by everybody.
    scale: [[0, "#b35806"], [0.25, "#f1a340"], [0.5, "#f2f2f2"], [0.75, "#67a9cf"], [1, "#2166ac"]],
    title: "change",
  };

  function makeMap(record) {
    const by = (id) => document.getElementById(id);
    const place = by("plot-map"), world = by("map-world"), measure = by("map-measure"), slider = by("map-round");
    const play = by("map-play");
    const { side, block } = record;
    const worlds = record.worlds.map((item) => ({ ...item, measures: item.measures.map(decoded) }));
    worlds.forEach((item, number) => world.append(new Option(`${item.world}: ${item.population}`, number)));
    const views = record.criteria.map((title, number) => ({ at: (m, i) => rating(m[number][i], record.scales[number]), scale: ratings, range: record.scales[number], title }));
    let listening = false;

    function values(item, view, round) {
      const start = round * side * side, rows = [];
      for (let row = 0; row < side; row++) {
        rows.push(Array.from({ length: side }, (_, column) => view.at(item.measures, start + row * side + column, record.scales[0])));
      }
      return rows;
    }

    function range(item, view) {
      // One scale for all rounds of a world: what differs between rounds is to be seen.
      let low = Infinity, high = -Infinity;
      for (let i = 0; i < record.rounds.length * side * side; i++) {
        const value = view.at(item.measures, i, record.scales[0]);
        if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
      }
      if (low > high) return view.range ?? [-1, 1];
      if (!view.range) { const most = Math.max(0.1, -low, high); return [-most, most]; }
      return high - low < 0.2 ? [low - 0.1, high + 0.1] : [low, high];
    }

    async function show() {
      const item = worlds[world.value || 0], view = views[measure.value] ?? change;
      const rounds = record.rounds.filter((round) => round <= item.last);
      slider.max = rounds.length - 1;
      const at = Math.min(Number(slider.value), rounds.length - 1);
      const cells = values(item, view, at), there = cells.flat().filter((value) => value !== null);
      const [zmin, zmax] = range(item, view);
      const said = `${rounds[at]} of ${item.last}`;
      by("map-said").textContent = said;
      slider.setAttribute("aria-valuetext", `round ${said}`);
      const mean = there.reduce((sum, value) => sum + value, 0) / Math.max(1, there.length);
      by("map-words").textContent = there.length
        ? `World ${item.world}, round ${said}: ${measure.selectedOptions[0].text}; mean ${mean.toFixed(2)}, from ` +
          `${Math.min(...there).toFixed(2)} to ${Math.max(...there).toFixed(2)} in ${there.length} cells.`
        : `World ${item.world}, round ${said}: nothing was rated.`;
      const agents = cells.map((line, row) => line.map((_, column) =>
        block === 1 ? `agent ${row * side + column}` : `block ${row + 1}, ${column + 1}`));
      const axis = { visible: false, constrain: "domain", fixedrange: true };
      await draw(place, {
        data: [{
          type: "heatmap", z: cells, text: agents, colorscale: view.scale, zmin, zmax, xgap: side > 50 ? 0 : 1.5, ygap: side > 50 ? 0 : 1.5,
          hovertemplate: "%{text}: %{z:.2f}<extra></extra>", hoverongaps: false,
          colorbar: { title: { text: view.title }, thickness: 12, outlinewidth: 0, x: 1.01, tickfont: { color: "var(--ink)" } },
        }],
        layout: {
          paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: "var(--ink)", size: 13 },
          margin: { l: 4, r: 4, t: 4, b: 4 }, xaxis: axis, yaxis: { ...axis, autorange: "reversed", scaleanchor: "x" },
          hoverlabel: { bgcolor: "var(--card)", font: { color: "var(--ink)" }, bordercolor: "var(--line)" },
        },
      });
      place.dataset.round = String(rounds[at]);
      if (!listening) {
        listening = true;
        place.on("plotly_click", ({ points: [point] }) => {
          if (block === 1 && readers.interactions) readers.interactions.find({ world: String(worlds[world.value].world), agent: String(point.y * side + point.x) });
        });
      }
    }

    let timer = null;
    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
      by("map-words").setAttribute("aria-live", "polite");
      play.setAttribute("aria-pressed", "false");
    }
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (Number(slider.value) >= Number(slider.max)) slider.value = 0;
      play.textContent = "Stop";
      by("map-words").setAttribute("aria-live", "off");
      play.setAttribute("aria-pressed", "true");
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        show();
        if (Number(slider.value) >= Number(slider.max)) stop();
      }, 500);
      return undefined;
    });
    for (const control of [world, measure, slider]) control.addEventListener("input", show);
    return { show };
  }

  // --- readers ------------------------------------------------------------------------------

  function element(name, className, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children); // strings become text
    return made;
  }
  const saying = (className, who, text) =>
    element("div", `saying ${className}`, element("p", "who", who), element("p", "", text === null ? "nothing" : text));
  const rated = (value) => (value === null ? "not rated" : value.toFixed(2));

  function turn({ role, agent, text, rating: given, observed, recalled, data, judges, taken }, number, turns, named) {
    const made = [];
    const before = turns[number - 1]?.recalled;
    const again = JSON.stringify(before) === JSON.stringify(recalled);
    for (const { question, answer, source, distance, by } of judges || again ? [] : recalled) {
      const whose = { initial: "an answer that it began with to", broadcast: "an answer that it was told to",
        heard: `what agent ${by} said of` }[source] ?? "an answer of its own to";
      made.push(saying("", `Remembered, ${whose} “${question}” (distance ${distance.toFixed(2)})`, answer));
    }
    if (judges) {
      const how = taken === null ? "" : `; what it came to took up ${Math.round(taken * 100)} % of its own words`;
      made.push(saying("", `Agent ${agent} rates ${rated(given)}${how}`, text));
      return made;
    }
    const ratings = Object.entries(observed).map(([criterion, value]) => `${criterion} ${rated(value)}`);
    const speaker = named.length > 1 ? `Agent ${agent}, ` : "";
    const who = `${speaker}${speaker ? role : role[0].toUpperCase() + role.slice(1)}${ratings.length ? ": " : ""}${ratings.join(", ")}`;
    made.push(saying(!ratings.length ? "" : role === turns[turns.length - 1].role ? "outcome" : "observed", who, text));
    if (data !== null) made.push(element("p", "meta", data));
    return made;
  }

  function interaction(item) {
    const part = item.part === null ? "" : `, ${item.part}`;
    const made = element("article", "item",
      element("h4", "", item.question),
      element("p", "meta", `World ${item.world}, round ${item.round}, agent ${item.agent}, ${item.label}${part}`),
      ...item.members.filter(({ name, about }) => name !== null || about.length).map(({ agent, name, about }) =>
        element("p", "meta", `Agent ${agent}: ${[name, ...about].filter((text) => text !== null).join(", ")}`)),
      ...item.turns.flatMap((one, number, turns) => turn(one, number, turns, item.members)));
    if (item.failure !== null) made.append(saying("", "Failed", item.failure));
    return made;
  }

  function group(item) {
    const made = element("article", "item", element("p", "meta", item.kind), element("h4", "", item.query));
    item.responses.forEach(({ score, text }, number) =>
      made.append(saying(number === 0 ? "best" : "", `Score ${score.toFixed(2)}${number === 0 ? ", the best" : ""}`, text)));
    if (item.num_left_out) made.append(element("p", "meta", `${item.num_left_out} more responses, in between, are left out here.`));
    return made;
  }

  function outcome({ failure, compared }) {
    const first = compared[0], last = compared[compared.length - 1];
    if (failure !== null) return "failed";
    return first === null || last === null || first === last ? "same" : last > first ? "better" : "worse";
  }
  const tests = {
    text: (item, wanted) => wanted.toLowerCase().split(/\s+/).every((word) => item.searched.includes(word)),
    world: (item, wanted) => item.world === Number(wanted),
    agent: (item, wanted) => item.agent === Number(wanted),
    about: (item, wanted) => item.members.some(({ about }) => about.includes(wanted)),
    outcome: (item, wanted) => outcome(item) === wanted,
    kind: (item, wanted) => item.kind === wanted,
    score: (item, wanted) => item.responses[0].score >= Number(wanted),
  };

  function makeReader(place, items, shown) {
    const texts = (value) => typeof value === "string" ? [value] : value && typeof value === "object" ? Object.values(value).flatMap(texts) : [];
    const all = items.map((item) => ({ ...item, searched: texts(item).join("\n").toLowerCase() }));
    const filters = [...place.querySelectorAll("[data-filter]")];
    const steps = [...place.querySelectorAll("[data-step]")];
    const count = place.querySelector("[data-count]"), list = place.querySelector("[data-items]");
    const worlds = place.querySelector("select[data-filter=world]");
    if (worlds) for (const number of [...new Set(all.map((item) => item.world))].sort((a, b) => a - b)) worlds.append(new Option(number, number));
    const who = place.querySelector("select[data-filter=about]");
    if (who) for (const fact of [...new Set(all.flatMap(({ members }) => members.flatMap(({ about }) => about)))].sort()) who.append(new Option(fact, fact));
    let at = 0, found = all;

    function show() {
      count.textContent = found.length ? `${at + 1} of ${found.length}` : "none of the samples is like that";
      list.replaceChildren(...(found.length ? [shown(found[at])] : []));
      steps[0].disabled = at === 0;
      steps[1].disabled = at >= found.length - 1;
    }
    function filter() {
      const wanted = filters.filter((control) => control.value.trim() !== "");
      found = all.filter((item) => wanted.every((control) => tests[control.dataset.filter](item, control.value.trim())));
      at = 0;
      show();
    }
    for (const control of filters) control.addEventListener("input", filter);
    for (const step of steps) step.addEventListener("click", () => { at += Number(step.dataset.step); show(); });
    filter();
    return {
      find(values) {
        for (const control of filters) control.value = values[control.dataset.filter] ?? "";
        filter();
        place.scrollIntoView({ block: "start" });
      },
    };
  }

  const readers = {};
  for (const [name, items, shown] of [["interactions", data.interactions, interaction], ["groups", data.groups, group]]) {
    const place = document.getElementById(`reader-${name}`);
    if (place) readers[name] = makeReader(place, items, shown);
  }
  const map = data.map === null ? null : makeMap(data.map);
  // One drawing at a time: a change of scheme while the page is drawn is drawn afterwards.
  let drawing = drawAll();
  dark.addEventListener("change", () => { drawing = drawing.then(drawAll); });
})();
