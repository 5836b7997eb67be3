//! The sandbox's arrivals file, read while it grows.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde::Deserialize;

/// A line of it, as far as the demo looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Arrival {
    /// Microseconds of the Unix epoch.
    pub(crate) at_us: u64,
    pub(crate) id: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) accepted: bool,
    /// `accepted`, `duplicate`, `refused`, `hung` or `dropped`.
    pub(crate) result: String,
}

/// Reads what has come since the last time.
pub(crate) struct Tail {
    file: File,
    /// A line that is not whole yet.
    rest: Vec<u8>,
}

impl Tail {
    pub(crate) fn open(path: &Path) -> io::Result<Tail> {
        Ok(Tail { file: File::open(path)?, rest: Vec::new() })
    }

    /// All lines that are whole by now and were not given before.
    ///
    /// # Errors
    /// The file cannot be read, or holds what is no arrival.
    pub(crate) fn read(&mut self) -> io::Result<Vec<Arrival>> {
        self.file.read_to_end(&mut self.rest)?;
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { return Ok(vec![]) };
        let lines = self.rest[..end].split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let read: Result<Vec<Arrival>, _> = lines.map(serde_json::from_slice).collect();
        self.rest.drain(..=end);
        Ok(read?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_come_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arrivals.ndjson");
        let mut file = File::create(&path).unwrap();
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(tail.read().unwrap(), []);
        let line =
            |n: u64| format!(r#"{{"seq":{n},"at_us":{n},"id":"m","status":200,"accepted":true,"result":"accepted","x":1}}"#);
        write!(file, "{}\n{}", line(1), &line(2)[..20]).unwrap();
        assert_eq!(tail.read().unwrap().iter().map(|a| a.at_us).collect::<Vec<_>>(), [1]);
        assert_eq!(tail.read().unwrap(), []);
        write!(file, "{}\n{}\n", &line(2)[20..], line(3)).unwrap();
        assert_eq!(tail.read().unwrap().iter().map(|a| a.at_us).collect::<Vec<_>>(), [2, 3]);
        writeln!(file, "no arrival").unwrap();
        assert!(tail.read().is_err());
    }
}
