//! A context on disk says under which flags it was written: who goes on with it need
//! not say them again.

use super::{Cli, expand};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use kiv_context::Identity;
use std::ffi::OsString;
use std::path::PathBuf;

/// Parses the process's arguments, and takes flags that are not among them from the
/// context that `run` and `chat` go on with.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut args = expand(args);
    let matches = Cli::command().try_get_matches_from(&args)?;
    let more = missing(&matches);
    if more.is_empty() {
        return Cli::from_arg_matches(&matches);
    }
    let shown: Vec<String> = more
        .iter()
        .map(|(flag, value)| format!("{flag} {value}"))
        .collect();
    eprintln!("as the context was written: {}", shown.join(" "));
    // Right behind the command: a prompt may end in `--`.
    let flags = more.into_iter().flat_map(|(flag, value)| [flag, value]);
    args.splice(2..2, flags.map(OsString::from));
    Cli::from_arg_matches(&Cli::command().try_get_matches_from(args)?)
}

/// Flags with which the context was written, where others would be taken.
fn missing(matches: &ArgMatches) -> Vec<(String, String)> {
    let Some(("run" | "chat", given)) = matches.subcommand() else {
        return Vec::new();
    };
    let folder = given.get_one::<PathBuf>("kv_dir");
    // What is wrong with it is told when it is opened.
    let Some(Ok(info)) = folder.map(|folder| kiv_context::info(folder)) else {
        return Vec::new();
    };
    let differs = |(flag, value): &(String, String)| {
        let id = flag.trim_start_matches('-').replace('-', "_");
        let is_known = given.try_contains_id(&id).is_ok();
        let by_default = given.value_source(&id) != Some(ValueSource::CommandLine);
        is_known && by_default && {
            let default = given.get_raw(&id).and_then(|mut values| values.next());
            default.is_none_or(|default| default != value.as_str())
        }
    };
    let all = flags(&info.manifest.identity).into_iter();
    all.filter(differs).collect()
}

fn flags(identity: &Identity) -> Vec<(String, String)> {
    let (key, value) = (identity.key_format.name(), identity.value_format.name());
    let own = [
        ("--kv-block", identity.block.to_string()),
        ("--kv-sinks", identity.first_position.to_string()),
        ("--kv-store", format!("{key},{value}")),
    ];
    let of_caches = |name: &str| {
        let mut of_cache = identity.settings.iter().filter(|s| s.0 == name);
        of_cache.next().map(|s| s.1.as_str())
    };
    // The types of the caches are taken without the flag.
    let cache_types = ["--cache-type-k", "--cache-type-v"].map(of_caches);
    let smaller = cache_types != [Some(key), Some(value)];
    let own = own.into_iter().take(if smaller { 3 } else { 2 });
    let own = own.map(|(flag, value)| (flag.to_owned(), value));
    let of_flags =
        |(flag, value): &&(String, String)| flag.starts_with("--") && !value.contains(' ');
    let others = identity.settings.iter().filter(of_flags).cloned();
    own.chain(others).collect()
}
