//! Tables for people: columns as wide as what is in them, two spaces apart.

use std::fmt;

/// Between two columns.
const GAP: &str = "  ";

/// A table that prints itself.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// A heading, and on which side its column is even.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// Text.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

// === impl Table ===

impl Table {
    pub(crate) fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row: one cell a column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table, or `otherwise` when it has no row.
    pub(crate) fn or(&self, otherwise: &str) -> String {
        if self.rows.is_empty() { format!("{otherwise}\n") } else { self.to_string() }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: Vec<String> =
            self.columns.iter().map(|column| column.head().to_owned()).collect();
        let rows = || std::iter::once(&head).chain(&self.rows);
        let width = |at: usize| {
            rows().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for row in rows() {
            let cells = self.columns.iter().zip(&widths).zip(row);
            let line: Vec<String> = cells
                .map(|((column, width), cell)| match column {
                    Column::Left(_) => format!("{cell:<width$}"),
                    Column::Right(_) => format!("{cell:>width$}"),
                })
                .collect();
            writeln!(f, "{}", line.join(GAP).trim_end())?;
        }
        Ok(())
    }
}

// === impl Column ===

impl Column {
    const fn head(self) -> &'static str {
        match self {
            Self::Left(head) | Self::Right(head) => head,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table =
            Table::new([Column::Right("ID"), Column::Left("NAME"), Column::Left("ZONE")]);
        assert_eq!(table.or("nobody"), "nobody\n");
        table.row(["7".to_owned(), "a-long-name".to_owned(), String::new()]);
        table.row(["1234".to_owned(), "ß".to_owned(), "z".to_owned()]);
        let expected = "  ID  NAME         ZONE
   7  a-long-name
1234  ß            z
";
        assert_eq!(table.or("nobody"), expected);
    }
}
