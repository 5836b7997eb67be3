//! `paceline completions`: what a shell needs to complete the command line.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use crate::{args::Cli, exit::Failure, output};

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell to write for
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    Ok(output::write(&script(args.shell))?)
}

fn script(shell: Shell) -> String {
    let mut bytes = Vec::new();
    generate(shell, &mut Cli::command(), "paceline", &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_is_told_every_command() {
        fn names(command: &clap::Command, found: &mut Vec<String>) {
            for inner in command.get_subcommands() {
                found.push(inner.get_name().to_owned());
                names(inner, found);
            }
        }
        let mut commands = vec![];
        names(&Cli::command(), &mut commands);
        assert!(commands.iter().any(|c| c == "check-config") && commands.iter().any(|c| c == "stats"), "{commands:?}");
        for shell in Shell::value_variants() {
            let script = script(*shell);
            let missing: Vec<_> = commands.iter().filter(|c| !script.contains(c.as_str())).collect();
            assert!(missing.is_empty(), "{shell}: {missing:?}");
            assert!(script.contains("embedded"), "{shell}: no global options");
        }
    }

    #[test]
    fn bash_completes_with_it() {
        let ask = "COMP_WORDS=(paceline dlq rep); COMP_CWORD=2; _paceline paceline rep dlq; echo \"${COMPREPLY[@]}\"";
        let line = format!("{}\n{ask}\n", script(Shell::Bash));
        let output = std::process::Command::new("bash").args(["--norc", "-c", &line]).output().unwrap();
        let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!((said.0.as_ref(), said.1.as_ref()), ("replay\n", ""));
    }
}
