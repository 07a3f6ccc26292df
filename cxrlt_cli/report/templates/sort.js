for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  const sort = (column) => {
    const head = heads[column], numeric = head.classList.contains("n");
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => numeric ? a - b : a.localeCompare(b);
    const rows = [...table.tBodies[0].rows].map((row) => [row, value(row, column)]);
    rows.sort(([, a], [, b]) => (a === "") - (b === "") || (down ? -1 : 1) * order(a, b));
    table.tBodies[0].append(...rows.map(([row]) => row));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
}
