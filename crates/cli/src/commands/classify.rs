//! `paceline classify`.

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
};

use clap::Args;
use paceline_core::Message;
use serde::Serialize;

use super::lines;
use crate::{
    config::Config,
    exit::Failure,
    output::{self, Format},
};

#[derive(Debug, Args)]
pub struct ClassifyArgs {
    /// Messages, one JSON document a line; `-` reads standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Routing key the messages would be published with, such as high.gmail.com
    #[arg(long, value_name = "KEY", default_value = "")]
    pub key: String,
}

/// One line's answer; exactly one of the two groups is given.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Classified { id: String, class: &'static str, rule: Option<String>, destination: String, lane: String },
    Invalid { line: u64, error: String, field: String },
}

/// Streams one answer a line; fails at the end if any line was no message.
pub fn run(config: &Config, args: &ClassifyArgs, format: Option<Format>) -> Result<(), Failure> {
    let max_bytes = config.broker.max_message_bytes;
    let mut invalid = 0u64;
    let answers = lines::open(&args.file, max_bytes)?.map(|line| {
        let (line, body) = line.map_err(Failure::from)?;
        Ok(match Message::parse(&body, None, max_bytes) {
            Ok(message) => {
                let got = config.classifier.classify(&message, &args.key);
                Answer::Classified {
                    id: message.id,
                    class: got.class.as_str(),
                    rule: got.rule.map(|r| r.to_string()),
                    destination: got.destination.to_string(),
                    lane: got.lane.to_string(),
                }
            }
            Err(e) => {
                invalid += 1;
                Answer::Invalid { line, error: e.problem, field: e.field }
            }
        })
    });
    print(answers, format)?;
    match invalid {
        0 => Ok(()),
        1 => Err(Failure::failed("1 line is no message")),
        n => Err(Failure::failed(format!("{n} lines are no messages"))),
    }
}

fn print(answers: impl Iterator<Item = Result<Answer, Failure>>, format: Option<Format>) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    match format {
        Some(Format::Table) => {
            let rows = answers.map(|a| a.map(row)).collect::<Result<Vec<_>, _>>()?;
            out.write_all(output::table(&["ID", "CLASS", "RULE", "DESTINATION", "LANE"], &rows).as_bytes())?;
        }
        Some(Format::Json) => {
            let mut separator = "[";
            for answer in answers {
                out.write_all(separator.as_bytes())?;
                serde_json::to_writer(&mut out, &answer?).map_err(io::Error::from)?;
                separator = ",\n";
            }
            out.write_all(if separator == "[" { b"[]\n" } else { b"]\n" })?;
        }
        None => {
            for answer in answers {
                serde_json::to_writer(&mut out, &answer?).map_err(io::Error::from)?;
                out.write_all(b"\n")?;
            }
        }
    }
    Ok(out.flush()?)
}

fn row(answer: Answer) -> Vec<String> {
    match answer {
        Answer::Classified { id, class, rule, destination, lane } => {
            vec![id, class.into(), rule.unwrap_or_else(|| "-".into()), destination, lane]
        }
        Answer::Invalid { line, error, field } => vec![format!("line {line}: {field}: {error}")],
    }
}
