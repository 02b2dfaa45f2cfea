// The selected plan in full: what it is, what it keeps in fp32 by op type and by role, and why.

const REASONS = {
  fixed: "never low",
  range: "beyond the range",
  culprit: "damages the model when low",
  projection: "its logits tie when low",
  noise: "its rounding weighs more than its time",
  casts: "casts around it would cost more",
};
const LETTERS = { fixed: "", range: "r", culprit: "c", projection: "p", noise: "n", casts: "" };

// Why a plan keeps a node in fp32; null where it is low. Only the search at node level has reasons of its own.
function whyKept(plan) {
  const kept = bits(plan.nodes);
  const own = Object.entries(plan.kept_for).map(([reason, text]) => [reason, bits(text)]);
  return (index) => {
    if (!kept.has(index)) return null;
    const node = page.nodes[index];
    if (node.fixed !== null) return "fixed";
    const found = own.find(([, set]) => set.has(index));
    if (found) return found[0];
    return node.beyond_range ? "range" : plan.explained ? "casts" : "plan";
  };
}

function countBy(indices, name) {
  const counts = new Map();
  for (const index of indices) counts.set(name(index), (counts.get(name(index)) ?? 0) + 1);
  return counts;
}

function keptTable(plan) {
  const kept = bits(plan.nodes);
  const familyAndType = (index) => `${page.roles[page.nodes[index].role].family} ${page.nodes[index].op_type}`;
  const every = countBy(page.nodes.keys(), familyAndType);
  const own = countBy([...page.nodes.keys()].filter(kept.has), familyAndType);
  const share = (key) =>
    !every.has(key)
      ? "-"
      : own.get(key) === every.get(key)
        ? `all ${every.get(key)}`
        : `${own.get(key) ?? 0} of ${every.get(key)}`;
  const types = [...new Set([...own.keys()].map((key) => key.split(" ")[1]))].sort();
  if (types.length === 0) return [make("p", {}, "Nothing stays in fp32.")];
  const head = make(
    "thead",
    {},
    make(
      "tr",
      {},
      ...["in fp32", "encoder", "decoder"].map((text, column) =>
        make("th", { scope: "col", class: column ? "number" : null }, text),
      ),
    ),
  );
  const rows = types.map((type) =>
    make(
      "tr",
      {},
      make("td", {}, type),
      ...["encoder", "decoder"].map((family) => make("td", { class: "number" }, share(`${family} ${type}`))),
    ),
  );
  return [make("table", { class: "kept-types" }, head, make("tbody", {}, ...rows))];
}

function rolesKept(plan) {
  const kept = bits(plan.nodes);
  const every = countBy(page.nodes.keys(), (index) => page.nodes[index].role);
  const own = countBy([...page.nodes.keys()].filter(kept.has), (index) => page.nodes[index].role);
  return [...own].map(
    ([role, count]) =>
      `${page.roles[role].name}${count === every.get(role) ? "" : ` (${count} of ${every.get(role)})`}`,
  );
}

function reasonsKept(plan) {
  if (!plan.explained) return [];
  const why = whyKept(plan);
  const counts = countBy(
    [...page.nodes.keys()].filter((index) => why(index) !== null),
    why,
  );
  const rows = [...counts].map(([reason, count]) =>
    make("tr", {}, make("td", {}, REASONS[reason]), make("td", { class: "number" }, String(count))),
  );
  return rows.length ? [make("h3", {}, "why in fp32"), make("table", {}, make("tbody", {}, ...rows))] : [];
}

function showDetails() {
  const plan = selection.plan;
  const box = document.getElementById("details");
  if (plan === null) {
    box.replaceChildren(make("p", { class: "empty" }, "No plan was judged."));
    return;
  }
  const from = plan.parent === null ? "" : `, from plan ${plan.parent}`;
  const roles = page.nodes.length ? rolesKept(plan) : [];
  box.replaceChildren(
    make("h3", {}, planTitle(plan)),
    make("p", {}, mark(plan.verdict), `${plan.verdict}, stage ${plan.stage}${from}`),
    make(
      "p",
      {},
      `${plan.in_fp32} nodes in fp32${plan.casts === null ? "" : `, ${plan.casts} casts`}`,
    ),
    ...(plan.reason ? [make("p", { dir: "auto" }, plan.reason)] : []),
    ...(page.nodes.length ? [...keptTable(plan), ...reasonsKept(plan)] : []),
    ...(roles.length
      ? [
          make(
            "details",
            {},
            make("summary", {}, `${roles.length} roles, a star for the layer`),
            make("ul", {}, ...roles.map((role) => make("li", {}, role))),
          ),
        ]
      : []),
  );
}
