//! Standard output: the result of a command and nothing else, for people or for programs.

use std::io::{self, Write};

use serde::Serialize;

/// What `--output` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: one array for a list, one object otherwise.
    Json,
}

/// Prints a list: an array of `items`, or a table with a row for each.
pub fn list<T: Serialize>(format: Format, items: &[T], columns: &[&str], row: impl Fn(&T) -> Vec<String>) -> io::Result<()> {
    match format {
        Format::Json => json(items),
        Format::Table => write(&table(columns, &items.iter().map(row).collect::<Vec<_>>())),
    }
}

/// Prints one thing: an object, or what `people` says of it.
pub fn object<T: Serialize>(format: Format, value: &T, people: impl FnOnce(&T) -> String) -> io::Result<()> {
    match format {
        Format::Json => json(value),
        Format::Table => write(&people(value)),
    }
}

/// One JSON document on a line.
pub fn json<T: Serialize + ?Sized>(value: &T) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Text as it is.
pub fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Aligned columns with a header; control characters in cells, which may come from outside, are replaced.
pub fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let clean = |cell: &str| -> String { cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect() };
    let header = columns.iter().map(|c| (*c).to_owned()).collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(header).chain(rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect())).collect();
    let mut widths = vec![0; columns.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_harmless() {
        let rows = [vec!["a".to_owned(), "é\u{1b}[2J".into()], vec!["long".into(), "b".into()]];
        assert_eq!(table(&["X", "Y"], &rows), "X     Y\na     é [2J\nlong  b\n");
    }
}
