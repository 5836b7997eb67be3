//! Where the demo is shown while it runs: a screen drawn in place, or plain lines. On standard error.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use super::{
    frame::Frame,
    paint::{self, COLUMNS, LINES},
};

/// Between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// Shows frames as they come.
pub(crate) enum View {
    Screen {
        colour: bool,
        /// Something is drawn, and the cursor stands below it.
        drawn: bool,
    },
    Plain {
        last: Option<Instant>,
    },
}

impl View {
    /// A screen where there is a terminal that can show one, and `plain` was not asked for.
    pub(crate) fn new(plain: bool) -> View {
        let dumb = std::env::var("TERM").is_ok_and(|t| t == "dumb");
        if plain || dumb || !io::stderr().is_terminal() || !fits() {
            return View::Plain { last: None };
        }
        // https://no-color.org: present and not empty.
        let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        View::Screen { colour, drawn: false }
    }

    /// Shows the frame, if it is time to; nobody is told where standard error is closed.
    pub(crate) fn show(&mut self, frame: &Frame) {
        match self {
            View::Screen { colour, drawn } => {
                let columns = size().map_or(COLUMNS, |(columns, _)| columns);
                let lines = paint::screen(frame, columns, *colour);
                write(&redrawn(&lines, *drawn));
                *drawn = true;
            }
            View::Plain { last } => {
                if last.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) {
                    *last = Some(Instant::now());
                    write(&format!("{}\n", paint::plain(frame)));
                }
            }
        }
    }

    /// Shows it whether it is time or not.
    pub(crate) fn show_last(&mut self, frame: &Frame) {
        if let View::Plain { last } = self {
            *last = None;
        }
        self.show(frame);
    }
}

impl Drop for View {
    /// Gives the cursor back.
    fn drop(&mut self) {
        if let View::Screen { drawn: true, .. } = self {
            write("\x1b[?7h\x1b[?25h");
        }
    }
}

/// One write a frame, each line cleared as it is written over: nothing flickers. Lines do not wrap, or the way back up
/// would be longer than known.
fn redrawn(lines: &[String], drawn: bool) -> String {
    let mut out = if drawn { format!("\x1b[{}A\r", lines.len()) } else { "\x1b[?25l\x1b[?7l".to_owned() };
    for line in lines {
        out.extend([line, "\x1b[K\n"]);
    }
    out
}

/// Columns and lines of the terminal.
fn size() -> Option<(usize, usize)> {
    let (width, height) = terminal_size::terminal_size_of(io::stderr())?;
    Some((width.0.into(), height.0.into()))
}

fn fits() -> bool {
    size().is_none_or(|(columns, lines)| columns >= COLUMNS && lines > LINES)
}

fn write(text: &str) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_drawn_over_itself() {
        let lines = ["a".to_owned(), "b".to_owned()];
        assert_eq!(redrawn(&lines, false), "\x1b[?25l\x1b[?7la\x1b[K\nb\x1b[K\n");
        assert_eq!(redrawn(&lines, true), "\x1b[2A\ra\x1b[K\nb\x1b[K\n");
    }
}
