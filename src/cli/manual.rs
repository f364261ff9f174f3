use std::path::PathBuf;

use anyhow::Context as _;
use clap_complete::Shell;
use clap_mangen::Man;
use serde_json::json;

use super::{Context, command};
use crate::files::write_atomic;
use crate::stages::Outcome;

/// What `--help` says below the flags.
const WHERE_TO: &str = "\
  clipcap completions bash > ~/.local/share/bash-completion/completions/clipcap
  clipcap completions zsh > ~/.zfunc/_clipcap          # with fpath+=~/.zfunc before compinit
  clipcap completions fish > ~/.config/fish/completions/clipcap.fish";

#[derive(clap::Args)]
#[command(after_help = WHERE_TO)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(clap::Args)]
pub struct ManArgs {
    /// Write clipcap.1 and one page per command (clipcap-caption.1 ...) into this folder, such as ~/.local/share/man/man1
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn completions(args: CompletionsArgs, context: &Context) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "clipcap", &mut script);
    let script = String::from_utf8(script).context("a completion script is text")?;
    context.terminal.result(&script, &json!({"shell": args.shell.to_string(), "script": script}));
    Ok(Outcome::Complete)
}

pub fn man(args: ManArgs, context: &Context) -> anyhow::Result<Outcome> {
    let mut command = command().disable_help_subcommand(true);
    command.build();
    let Some(folder) = args.out else {
        let page = String::from_utf8(rendered(command)?).context("a manual page is text")?;
        context.terminal.result(&page, &json!({"page": page}));
        return Ok(Outcome::Complete);
    };
    let mut written = Vec::new();
    for (name, command) in with_subcommands(command) {
        let path = folder.join(format!("{name}.1"));
        write_atomic(&path, &rendered(command)?).with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
    }
    let text: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
    context.terminal.result(&text.join("\n"), &json!({"pages": written}));
    Ok(Outcome::Complete)
}

fn rendered(command: clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(page)
}

/// A command and all below it, by the names of their pages: `clipcap`, `clipcap-model`, `clipcap-model-import` ...
fn with_subcommands(command: clap::Command) -> Vec<(String, clap::Command)> {
    let below: Vec<_> =
        command.get_subcommands().filter(|below| !below.is_hide_set()).cloned().flat_map(with_subcommands).collect();
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_string();
    std::iter::once((name, command)).chain(below).collect()
}
