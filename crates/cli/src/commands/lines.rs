//! Reading NDJSON line by line, with a bound on every line.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use crate::exit::Failure;

/// A line's number, from 1, and its bytes without the line break.
pub(crate) type Line = (u64, Vec<u8>);

/// Non-empty lines of a file, or of standard input for `-`.
pub(crate) struct Lines {
    reader: Box<dyn BufRead + Send>,
    number: u64,
    max_bytes: usize,
    with_empty: bool,
}

/// The file of that name; `-` is standard input.
pub(crate) fn open(path: &Path, max_bytes: usize) -> Result<Lines, Failure> {
    let reader: Box<dyn BufRead + Send> = if path.as_os_str() == "-" {
        Box::new(BufReader::with_capacity(1 << 16, io::stdin()))
    } else {
        let file = File::open(path).map_err(|e| Failure::failed(format!("{} cannot be read: {e}", path.display())))?;
        Box::new(BufReader::with_capacity(1 << 16, file))
    };
    Ok(Lines { reader, number: 0, max_bytes, with_empty: false })
}

impl Iterator for Lines {
    type Item = io::Result<Line>;

    /// A line longer than `max_bytes` comes cut to one byte more than that; the rest of it is passed over.
    fn next(&mut self) -> Option<io::Result<Line>> {
        loop {
            let mut line = Vec::new();
            let limit = self.max_bytes as u64 + 1;
            match self.reader.by_ref().take(limit).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) => return Some(Err(e)),
            }
            self.number += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
            } else if line.len() as u64 == limit
                && let Err(e) = self.skip_line()
            {
                return Some(Err(e));
            }
            if self.with_empty || !line.iter().all(u8::is_ascii_whitespace) {
                return Some(Ok((self.number, line)));
            }
        }
    }
}

impl Lines {
    /// Empty lines count too.
    pub(crate) fn with_empty(self) -> Lines {
        Lines { with_empty: true, ..self }
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let (used, done) = match buffer.iter().position(|b| *b == b'\n') {
                Some(at) => (at + 1, true),
                None => (buffer.len(), buffer.is_empty()),
            };
            self.reader.consume(used);
            if done {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str, max_bytes: usize) -> Vec<(u64, String)> {
        let lines = Lines { reader: Box::new(text.as_bytes()), number: 0, max_bytes, with_empty: false };
        lines.map(|l| l.map(|(n, bytes)| (n, String::from_utf8(bytes).unwrap())).unwrap()).collect()
    }

    #[test]
    fn numbered_trimmed_and_bounded() {
        let got = lines("a\r\n\n  \nbb\nccccc\ndddddd\ne", 5);
        let want = [(1, "a"), (4, "bb"), (5, "ccccc"), (6, "dddddd"), (7, "e")];
        assert_eq!(got, want.map(|(n, l)| (n, l.to_owned())));
        assert_eq!(lines("xxxxxxxxxx", 3), [(1, "xxxx".to_owned())]);
        assert_eq!(lines("", 3), []);
    }
}
