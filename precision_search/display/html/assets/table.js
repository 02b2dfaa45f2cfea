// The table: sorted by a click on a header, filtered by verdict, by text and by the selected plan.

const rowsById = new Map();
for (const row of document.querySelectorAll("#plans tbody tr")) rowsById.set(Number(row.dataset.id), row);
const originalOrder = [...rowsById.values()];
const headers = [...document.querySelectorAll("#plans thead th")];

// A plan in words is its row: the tip and the details say what the table says.
const planFacts = (id) => {
  const cells = [...rowsById.get(id).cells];
  return headers
    .map((header, index) => [header.textContent.trim(), cells[index].textContent.trim()])
    .filter(([name, value]) => name !== "plan" && value !== "" && value !== "-");
};
const planTitle = (plan) => `Plan ${plan.id}${plan.chosen ? ", chosen" : plan.on_front ? ", on the front" : ""}`;

function compare(first, second) {
  if (typeof first === "string") return first.localeCompare(second, "en", { numeric: true });
  return first - second;
}

function sortBy(header) {
  const key = header.querySelector("button").dataset.key;
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of headers)
    other.setAttribute("aria-sort", other === header ? (ascending ? "ascending" : "descending") : "none");
  const value = (row) => planById.get(Number(row.dataset.id))[key];
  const unknown = (row) => value(row) === null || value(row) === "";
  const known = originalOrder.filter((row) => !unknown(row));
  known.sort((one, other) => (ascending ? 1 : -1) * compare(value(one), value(other)));
  document.querySelector("#plans tbody").append(...known, ...originalOrder.filter(unknown));
}

function showRows() {
  const shown = new Set(
    [...document.querySelectorAll("#verdicts [aria-pressed=true]")].map((button) => button.dataset.verdict),
  );
  const wanted = document.getElementById("search").value.trim().toLowerCase();
  let count = 0;
  for (const [id, row] of rowsById) {
    const fits = selection.alone
      ? id === selection.plan?.id
      : shown.has(row.dataset.verdict) && (wanted === "" || row.textContent.toLowerCase().includes(wanted));
    row.hidden = !fits;
    row.classList.toggle("selected", id === selection.plan?.id);
    count += fits;
  }
  document.getElementById("count").textContent = `${count} of ${rowsById.size} shown`;
  const clear = document.getElementById("clear");
  clear.hidden = !selection.alone;
  clear.textContent = selection.alone ? `Only plan ${selection.plan.id} ✕` : "";
}

function startTable() {
  for (const header of headers) header.querySelector("button").addEventListener("click", () => sortBy(header));
  for (const button of document.querySelectorAll("#verdicts button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      showRows();
    });
  }
  document.getElementById("search").addEventListener("input", showRows);
  document.getElementById("clear").addEventListener("click", () => selection.clear());
  for (const [id, row] of rowsById) row.addEventListener("click", () => selection.select(id, selection.alone));
  selection.listeners.push(showRows);
}
