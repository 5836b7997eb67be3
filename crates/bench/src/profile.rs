//! Where the processor time of a message goes: `perf record` on the client, summed up by crate.
//!
//! A sample belongs to the crate whose source line it hit. Code of the standard library that was inlined belongs to
//! whoever called it; what was not inlined is told as `std`. So a crate's figure is what its own lines cost, not what
//! it caused further down: allocator, copying and the kernel stand for themselves.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::Failure;

/// Samples a second and thread.
const FREQUENCY: &str = "1999";
/// Functions listed below the table.
const TOP: usize = 40;

/// A recording under way; dropping it ends it and waits until it is written.
pub(crate) struct Perf(Child);

impl Perf {
    /// Starts to record.
    pub(crate) fn start(process: u32, data: &Path) -> Result<Perf, Failure> {
        let child = Command::new("perf")
            .args(["record", "--quiet", "-F", FREQUENCY, "-p", &process.to_string(), "-o"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("perf cannot be started: {error}; on Debian: apt-get install linux-perf"))?;
        Ok(Perf(child))
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        // Its own child, not yet waited for: the number is its own.
        if let Ok(process) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(process), Signal::SIGINT);
        }
        let _ = self.0.wait();
    }
}

/// A place that samples hit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    /// As linked, with the offset into it.
    symbol: String,
    offset: u64,
    object: String,
}

/// The table by crate and the functions hit most, in shares and in µs a message.
pub(crate) fn analyse(data: &Path, program: &Path, us_per_message: f64) -> Result<String, Failure> {
    let script = output(Command::new("perf").args(["script", "--no-demangle", "-F", "ip,sym,symoff,dso", "-i"]).arg(data))?;
    let mut places: BTreeMap<Place, u64> = BTreeMap::new();
    for place in script.lines().filter_map(place) {
        *places.entry(place).or_default() += 1;
    }
    let total: u64 = places.values().sum();
    if total == 0 {
        return Err("perf took no samples; see kernel.perf_event_paranoid".into());
    }
    let inlined = inlined(places.keys(), program)?;
    let mut by_crate: HashMap<String, u64> = HashMap::new();
    let mut by_function: HashMap<(String, String), u64> = HashMap::new();
    for (place, count) in &places {
        let (owner, function) = owner(place, inlined.get(place), program);
        *by_crate.entry(owner.clone()).or_default() += count;
        *by_function.entry((owner, function)).or_default() += count;
    }
    let share = |count: u64| count as f64 / total as f64;
    let row = |count: u64| format!("{:>6.1} % {:>7.1} µs", share(count) * 100.0, share(count) * us_per_message);
    let mut text = format!("{total} samples, {us_per_message:.0} µs of processor time a message\n\nby crate\n");
    for (owner, count) in sorted(by_crate) {
        let _ = writeln!(text, "{}  {owner}", row(count));
    }
    let _ = writeln!(text, "\nby function, the first {TOP}");
    for ((owner, function), count) in sorted(by_function).into_iter().take(TOP) {
        let _ = writeln!(text, "{}  {owner}: {function}", row(count));
    }
    Ok(text)
}

fn sorted<K: Ord>(counts: HashMap<K, u64>) -> Vec<(K, u64)> {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
    counts
}

/// From a line of `perf script`: `5581 symbol+0x12 (/path/to/object)`.
fn place(line: &str) -> Option<Place> {
    let (rest, object) = line.trim().rsplit_once(" (")?;
    let (_, symbol) = rest.trim().split_once(' ').unwrap_or((rest, "[unknown]"));
    let (symbol, offset) = symbol.rsplit_once("+0x").unwrap_or((symbol, "0"));
    let offset = u64::from_str_radix(offset.trim(), 16).unwrap_or(0);
    Some(Place { symbol: symbol.trim().to_owned(), offset, object: object.trim_end_matches(')').to_owned() })
}

/// A function and the file it stands in, innermost first.
type Frames = Vec<(String, String)>;

/// The functions inlined at each place of the program.
fn inlined<'a>(places: impl Iterator<Item = &'a Place>, program: &Path) -> Result<HashMap<Place, Frames>, Failure> {
    let symbols = output(Command::new("nm").args(["--defined-only"]).arg(program))?;
    let addresses: HashMap<&str, u64> = symbols
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            Some((words.nth(1)?, address))
        })
        .collect();
    let known: Vec<(&Place, u64)> = places
        .filter(|place| is(&place.object, program))
        .filter_map(|place| Some((place, addresses.get(place.symbol.as_str())? + place.offset)))
        .collect();
    let mut child = Command::new("addr2line")
        .args(["--functions", "--inlines", "--addresses", "--demangle", "--exe"])
        .arg(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("addr2line cannot be started: {error}; on Debian: apt-get install binutils"))?;
    let asked: String = known.iter().map(|(_, address)| format!("{address:#x}\n")).collect();
    let asking = child.stdin.take().map(|mut stdin| std::thread::spawn(move || stdin.write_all(asked.as_bytes())));
    let answer = String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned();
    if let Some(asking) = asking {
        asking.join().map_err(|_| "addr2line could not be asked")??;
    }
    Ok(known.iter().map(|(place, _)| (*place).clone()).zip(frames(&answer)).collect())
}

/// What `addr2line` said of each address: a line with the address, then pairs of function and `file:line`.
fn frames(answer: &str) -> Vec<Frames> {
    let mut all: Vec<Frames> = Vec::new();
    let mut lines = answer.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") {
            all.push(Vec::new());
        } else if let (Some(frames), Some(file)) = (all.last_mut(), lines.next()) {
            frames.push((line.to_owned(), file.to_owned()));
        }
    }
    all
}

/// The crate, or what stands for it, and the function.
fn owner(place: &Place, frames: Option<&Frames>, program: &Path) -> (String, String) {
    let object = place.object.as_str();
    let symbol = place.symbol.clone();
    if object.starts_with("[kernel") || object.starts_with("[guest") {
        return ("kernel".to_owned(), symbol);
    }
    if !is(object, program) {
        let is_one_of = |words: &[&str]| words.iter().any(|word| symbol.contains(word));
        let owner =
            if is_one_of(&["malloc", "free", "calloc", "realloc", "_int_", "tcache", "unlink_chunk", "arena", "sysmalloc"]) {
                "allocator"
            } else if is_one_of(&["memcpy", "memmove", "memset", "memcmp", "bcmp"]) {
                "copying and comparing memory"
            } else {
                "libc and other objects"
            };
        return (owner.to_owned(), symbol);
    }
    let frames = frames.map(Vec::as_slice).unwrap_or_default();
    let found = frames.iter().find_map(|(function, file)| Some((crate_of(file)?, function.clone())));
    found.unwrap_or_else(|| {
        let function = frames.first().map_or(symbol, |(function, _)| function.clone());
        (crate_in(&function).unwrap_or_else(|| "std".to_owned()), function)
    })
}

/// `tokio` of `/…/registry/src/index…/tokio-1.2.3/src/x.rs`, `paceline-core` of `/…/crates/core/src/x.rs`; nothing of the
/// standard library's files.
fn crate_of(file: &str) -> Option<String> {
    if let Some((_, rest)) = file.split_once("/registry/src/") {
        let versioned = rest.split('/').nth(1)?;
        let end = versioned
            .match_indices('-')
            .map(|(at, _)| at)
            .find(|at| versioned[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
        return Some(versioned[..end.unwrap_or(versioned.len())].to_owned());
    }
    let (_, rest) = file.split_once("crates/").filter(|_| !file.contains("/rustc/"))?;
    Some(format!("paceline-{}", rest.split('/').next()?))
}

/// Where there is no line: the first crate that the function's name mentions and that is not the standard library, as in
/// `core::ptr::drop_in_place<lapin::channel::Channel>`.
fn crate_in(function: &str) -> Option<String> {
    let paths = function.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | ':'));
    let crates = paths.filter_map(|path| path.split_once("::").map(|(name, _)| name));
    let name = crates.into_iter().find(|name| !matches!(*name, "" | "core" | "alloc" | "std" | "hashbrown" | "__rustc"))?;
    // As packages are called, and as the paths of files have it.
    Some(name.replace('_', "-"))
}

fn is(object: &str, program: &Path) -> bool {
    Path::new(object).file_name() == program.file_name()
}

fn output(command: &mut Command) -> Result<String, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{program} cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_perf_are_read() {
        let read = |line| place(line).map(|p| (p.symbol, p.offset, p.object));
        let some = |symbol: &str, offset, object: &str| Some((symbol.to_owned(), offset, object.to_owned()));
        assert_eq!(read("    55d0c0 _ZN5tokio3runE+0x1f (/x/paceline)"), some("_ZN5tokio3runE", 0x1f, "/x/paceline"));
        assert_eq!(read(" ffffffff8100 tcp_sendmsg+0x0 ([kernel.kallsyms])"), some("tcp_sendmsg", 0, "[kernel.kallsyms]"));
        assert_eq!(read("  7f00 [unknown] (/x/libc.so.6)"), some("[unknown]", 0, "/x/libc.so.6"));
        assert_eq!(read(""), None);
    }

    #[test]
    fn crates_are_known_by_their_files() {
        let registry = "/home/u/.cargo/registry/src/index.crates.io-1949/";
        for (file, name) in [
            (format!("{registry}tokio-1.54.1/src/runtime/task.rs:8"), Some("tokio")),
            (format!("{registry}async-rs-0.8.4/src/lib.rs:1"), Some("async-rs")),
            (format!("{registry}x-2y-1.0.0-rc.1/src/lib.rs:1"), Some("x")),
            ("/home/u/paceline/crates/core/src/time.rs:8 (discriminator 2)".to_owned(), Some("paceline-core")),
            ("/rustc/59807616/library/core/src/slice/mod.rs:1".to_owned(), None),
            ("??:0".to_owned(), None),
        ] {
            assert_eq!(crate_of(&file).as_deref(), name, "{file}");
        }
    }

    #[test]
    fn without_lines_the_name_tells_the_crate() {
        for (function, name) in [
            ("tokio::runtime::task::raw::poll", Some("tokio")),
            ("hyper_util::client::legacy::pool::put", Some("hyper-util")),
            ("<lapin::io_loop::IoLoop as core::fmt::Debug>::fmt", Some("lapin")),
            ("core::ptr::drop_in_place<alloc::vec::Vec<redis::types::Value>>", Some("redis")),
            ("<alloc::string::String as core::clone::Clone>::clone", None),
            ("main", None),
        ] {
            assert_eq!(crate_in(function).as_deref(), name, "{function}");
        }
    }

    #[test]
    fn inlined_library_code_belongs_to_its_caller() {
        let answer = "0x10\ncore::ptr::read\n/rustc/1/library/core/src/ptr.rs:1\ntokio::poll\n/r/registry/src/i/tokio-1.0.0/src/a.rs:2\n\
                      0x20\n??\n??:0\n";
        let frames = frames(answer);
        assert_eq!(frames.len(), 2);
        let program = Path::new("/target/release/paceline");
        let place = Place { symbol: "s".into(), offset: 0, object: "/target/release/paceline".into() };
        assert_eq!(owner(&place, frames.first(), program), ("tokio".to_owned(), "tokio::poll".to_owned()));
        assert_eq!(owner(&place, frames.last(), program), ("std".to_owned(), "??".to_owned()));
        let place = Place { symbol: "_int_malloc".into(), object: "/lib/libc.so.6".into(), ..place };
        assert_eq!(owner(&place, None, program).0, "allocator");
    }
}
