// The picture of the blocks: rows are roles, columns layers, and a cell says in what precision the selected plan has it.

const cellsByRole = new Map();
page.nodes.forEach((node, index) => {
  const layers = cellsByRole.get(node.role) ?? cellsByRole.set(node.role, new Map()).get(node.role);
  layers.set(node.layer, [...(layers.get(node.layer) ?? []), index]);
});

function columnsOf(family) {
  const layers = new Set(
    page.nodes.filter((node) => page.roles[node.role].family === family).map((node) => node.layer),
  );
  const numbered = [...layers].filter((layer) => layer !== null).sort((one, other) => one - other);
  return layers.has(null) ? [...numbered, null] : numbered;
}

function stateOf(indices, why) {
  const reasons = indices.map(why);
  const kept = reasons.filter((reason) => reason !== null).length;
  if (indices.every((index) => page.nodes[index].fixed !== null)) return { state: "fixed", reasons };
  return { state: kept === 0 ? "low" : kept === indices.length ? "fp32" : "mixed", reasons };
}

function cell(indices, why) {
  if (indices === undefined) return make("td", { class: "is-absent" });
  const { state, reasons } = stateOf(indices, why);
  const facts = indices.map((index) => page.nodes[index]);
  const overflows = state === "low" && facts.some((node) => node.beyond_range);
  const reason = state === "fixed" ? undefined : reasons.find((found) => found !== null);
  const because = overflows ? "though beyond the safe range" : REASONS[reason];
  const words = because ? `${WORDS[state]}, ${because}` : WORDS[state];
  const td = make("td", { class: `is-${state}`, "aria-label": words }, overflows ? "!" : (LETTERS[reason] ?? ""));
  const show = (event) =>
    tip.show(
      event.clientX,
      event.clientY,
      make("b", {}, words),
      ...facts.map((node) =>
        definitions([
          ["node", node.key],
          ["largest input", number(node.input)],
          ["largest output", number(node.output)],
          ...(node.inside ? [["largest inside", number(node.inside)]] : []),
          ...(node.fixed ? [["why", node.fixed]] : []),
        ]),
      ),
    );
  td.addEventListener("pointermove", show);
  td.addEventListener("click", show);
  td.addEventListener("pointerleave", () => tip.hide());
  return td;
}

function familyTable(family, why, kept) {
  const columns = columnsOf(family);
  const head = columns.map((layer) => make("th", { scope: "col" }, layer === null ? "–" : String(layer)));
  const body = [];
  let group = null;
  page.roles.forEach((role, number) => {
    if (role.family !== family) return;
    const layers = cellsByRole.get(number);
    if (kept && ![...layers.values()].flat().some((index) => why(index) !== null)) return;
    if (role.group !== group) {
      group = role.group;
      body.push(
        make("tr", { class: "group" }, make("th", { colspan: columns.length + 1 }, group || "outside the blocks")),
      );
    }
    body.push(
      make(
        "tr",
        {},
        make("th", { scope: "row", title: role.name }, role.label),
        ...columns.map((layer) => cell(layers.get(layer), why)),
      ),
    );
  });
  return make(
    "div",
    {},
    make("h3", {}, family),
    make(
      "div",
      { class: "scroll" },
      make(
        "table",
        { class: "blocks" },
        make("thead", {}, make("tr", {}, make("th", {}, ""), ...head)),
        make("tbody", {}, ...body),
      ),
    ),
  );
}

function showBlocks() {
  const box = document.getElementById("blocks");
  const plan = selection.plan;
  if (!box || plan === null) return;
  document.getElementById("blocks-plan").textContent =
    `in plan ${plan.id} (${plan.stage}${plan.chosen ? ", chosen" : ""})`;
  const why = whyKept(plan);
  const kept = document.getElementById("only-kept").getAttribute("aria-pressed") === "true";
  box.replaceChildren(familyTable("encoder", why, kept), familyTable("decoder", why, kept));
  const swatch = (state, letter = "") => make("i", { class: `swatch is-${state}` }, letter);
  const used = new Set([...page.nodes.keys()].map(why));
  const overflows = page.nodes.some((node, index) => node.beyond_range && node.fixed === null && why(index) === null);
  const fixed = [...new Set(page.nodes.map((node) => node.fixed).filter((reason) => reason !== null))];
  legend(
    "blocks-legend",
    [swatch("low"), "low"],
    [swatch("fp32"), "fp32"],
    ...["range", "culprit", "projection", "noise"]
      .filter((reason) => used.has(reason))
      .map((reason) => [swatch("fp32", LETTERS[reason]), REASONS[reason]]),
    ...(overflows ? [[swatch("low", "!"), "low though beyond the safe range"]] : []),
    ...(fixed.length ? [[swatch("fixed"), `never low: ${fixed.join("; ")}`]] : []),
    ["columns are layers, – is outside them"],
  );
}

function startBlocks() {
  const button = document.getElementById("only-kept");
  if (!button) return;
  button.setAttribute("aria-pressed", narrow());
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    showBlocks();
  });
}
