//! Flags that are taken from a context on disk, which says under which it was written: who
//! goes on with it need not say them again. And those that a command would not heed.

use super::{Cli, expand};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};
use kiv_context::Identity;
use std::ffi::OsString;
use std::path::PathBuf;

/// Flags of sessions that `verify` would take and not heed: it makes its own sessions.
const SET_BY_VERIFY: [&str; 13] = [
    "ctx_size",
    "threads_batch",
    "batch_size",
    "ubatch_size",
    "cache_type_k",
    "cache_type_v",
    "no_kv_offload",
    "rope_scaling",
    "rope_freq_base",
    "rope_freq_scale",
    "kv_pos",
    "kv_rest",
    "kv_index",
];

/// The program's commands and flags.
fn command() -> Command {
    let hide = |verify, id| Command::mut_arg(verify, id, |arg| arg.hide(true));
    Cli::command().mut_subcommand("verify", |verify| {
        SET_BY_VERIFY.into_iter().fold(verify, hide)
    })
}

/// Refuses what a check would seem to be of and is not.
fn heeded(matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some(("verify", given)) = matches.subcommand() else {
        return Ok(());
    };
    let is_given = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
    let Some(id) = SET_BY_VERIFY.into_iter().find(|id| is_given(id)) else {
        return Ok(());
    };
    let flag = id.replace('_', "-");
    let why = format!(
        "verify makes sessions of its own, to which --{flag} is nothing: leave it out \
         (there are --cache-types and --ubatches)"
    );
    let mut all = command();
    all.build();
    let verify = all.find_subcommand_mut("verify");
    verify.map_or(Ok(()), |verify| {
        Err(verify.error(ErrorKind::ArgumentConflict, why))
    })
}

/// Parses the process's arguments, and takes flags that are not among them from the
/// context that `run` and `chat` go on with.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut args = expand(args);
    let matches = command().try_get_matches_from(&args)?;
    heeded(&matches)?;
    let more = missing(&matches);
    if more.is_empty() {
        return Cli::from_arg_matches(&matches);
    }
    let shown: Vec<String> = more
        .iter()
        .map(|(flag, value)| format!("{flag} {value}"))
        .collect();
    note!("as the context was written: {}", shown.join(" "));
    // Right behind the command: a prompt may end in `--`.
    let flags = more.into_iter().flat_map(|(flag, value)| [flag, value]);
    args.splice(2..2, flags.map(OsString::from));
    Cli::from_arg_matches(&command().try_get_matches_from(args)?)
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
