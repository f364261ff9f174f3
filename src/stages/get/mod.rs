//! `clipcap model get`: published models from Hugging Face's hub or a mirror of it, checked by hash, into the cache that transformers reads
//! too or into a folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value as Json, json};

use super::Outcome;
use super::summary::{next_lines, quoted, quoted_word};
use crate::files::ContentHash;
use crate::models::import::{CacheFolder, hub_cache};
use crate::pipeline::{Interrupt, Reporter, Tick};

mod catalog;
mod files;
mod hub;
mod transfer;

pub use catalog::{CATALOG, Entry, Kind, names};

use files::wanted;
use hub::{Hub, Remote, RemoteFile};
use transfer::{Ended, Transfer, is_whole};

/// What to fetch.
#[derive(Debug, Default)]
pub struct GetSettings {
    /// `ORG/NAME`, a short name of the catalogue, or several of these joined by `+`.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// A folder for the files themselves; None: the hub's cache.
    pub out: Option<PathBuf>,
    /// Say what would be fetched.
    pub dry_run: bool,
    pub hub: Hub,
}

impl GetSettings {
    /// With the environment's endpoint, token and cache.
    pub fn new(name: String) -> Self {
        Self { name, revision: "main".into(), ..Self::default() }
    }
}

/// A model that is there.
#[derive(Debug)]
struct Download {
    name: String,
    kind: Option<Kind>,
    remote: Option<Remote>,
    folder: PathBuf,
    /// Bytes that came over the network.
    fetched: u64,
}

/// Fetches what is missing, and says where everything lies.
///
/// # Errors
/// No such model, no network, or bytes that are not what the hub says they are.
pub fn run(settings: &GetSettings, reporter: &dyn Reporter, interrupt: &Interrupt) -> Result<(Outcome, String, Json)> {
    let names = names(&settings.name)?;
    if names.len() > 1 && settings.out.is_some() {
        bail!("--out is for one model: fetch {} one after the other", settings.name);
    }
    let mut all = Vec::new();
    let mut outcome = Outcome::Complete;
    for (name, kind) in names {
        match one(&name, settings, reporter, interrupt)? {
            Some(download) => all.push(Download { kind, ..download }),
            None => {
                outcome = Outcome::Interrupted;
                break;
            }
        }
    }
    let (text, json) = summary(settings, outcome, &all);
    Ok((outcome, text, json))
}

/// One model; None after an interrupt.
fn one(name: &str, settings: &GetSettings, reporter: &dyn Reporter, interrupt: &Interrupt) -> Result<Option<Download>> {
    let download = |remote, folder, fetched| Ok(Some(Download { name: name.to_string(), kind: None, remote, folder, fetched }));
    let cache = CacheFolder::new(&hub_cache(), name);
    if settings.hub.is_offline {
        let there = if settings.out.is_some() { None } else { cache.snapshot_of(&settings.revision) };
        let folder = there.with_context(|| {
            format!("HF_HUB_OFFLINE is set, and {name} is not in {}: unset it to fetch the model", cache.root().display())
        })?;
        return download(None, folder, 0);
    }
    let remote = settings.hub.model(name, &settings.revision)?;
    let files = wanted(name, &remote.files)?;
    let bytes: u64 = files.iter().filter_map(|file| file.size).sum();
    reporter.note(&format!("{name}: {} files, {}; {}", files.len(), size(bytes), remote.license_text(&settings.hub)));
    let folder = settings.out.clone().unwrap_or_else(|| cache.snapshot(&remote.commit));
    if settings.dry_run {
        return download(Some(remote), folder, 0);
    }
    let mut transfer = Transfer { hub: &settings.hub, name, commit: &remote.commit, interrupt, fetched: 0 };
    let mut before = 0;
    for file in files {
        let progress = |at: u64| {
            let mega = |bytes: u64| bytes.div_ceil(1 << 20);
            reporter.tick(&Tick { label: "fetching MB", done: mega(before + at), total: mega(bytes), ..Tick::default() });
        };
        let ended = match &settings.out {
            Some(out) => into_folder(&mut transfer, file, out, &progress)?,
            None => into_cache(&mut transfer, file, &cache, &remote.commit, &progress)?,
        };
        if ended == Ended::Interrupted {
            return Ok(None);
        }
        before += file.size.unwrap_or(0);
    }
    let fetched = transfer.fetched;
    if settings.out.is_none() {
        cache.set_ref(&settings.revision, &remote.commit)?;
    }
    download(Some(remote), folder, fetched)
}

/// A file under its own name.
fn into_folder(transfer: &mut Transfer, file: &RemoteFile, out: &Path, progress: &dyn Fn(u64)) -> Result<Ended> {
    let target = out.join(&file.path);
    if target.is_file() && is_whole(&target, file)? {
        return Ok(Ended::Whole);
    }
    let mut part = target.clone().into_os_string();
    part.push(".incomplete");
    let ended = transfer.fetch(file, Path::new(&part), progress)?;
    if ended == Ended::Whole {
        fs::rename(&part, &target).with_context(|| format!("cannot write {}", target.display()))?;
    }
    Ok(ended)
}

/// A file of the cache: its content under its hash, and its name as a link to that.
fn into_cache(
    transfer: &mut Transfer,
    file: &RemoteFile,
    cache: &CacheFolder,
    commit: &str,
    progress: &dyn Fn(u64),
) -> Result<Ended> {
    let name = match file.sha256.as_ref().or(file.git_id.as_ref()) {
        Some(name) => name.clone(),
        // A mirror that tells no hashes: the same commit and path are the same content.
        None => ContentHash::of(format!("{commit} {}", file.path)).to_string(),
    };
    let blob = cache.blob(&name);
    if !(blob.is_file() && is_whole(&blob, file)?) {
        let part = cache.blob(&format!("{name}.incomplete"));
        if transfer.fetch(file, &part, progress)? == Ended::Interrupted {
            return Ok(Ended::Interrupted);
        }
        fs::rename(&part, &blob).with_context(|| format!("cannot write {}", blob.display()))?;
    }
    cache.link(commit, &file.path, &name)?;
    Ok(Ended::Whole)
}

fn summary(settings: &GetSettings, outcome: Outcome, all: &[Download]) -> (String, Json) {
    let mut text = String::new();
    for download in all {
        let how = match (settings.dry_run, download.fetched) {
            (true, _) => "would be fetched".into(),
            (false, 0) => "is there already".into(),
            (false, bytes) => format!("{} fetched and checked", size(bytes)),
        };
        text += &format!("{}: {how}\n", download.name);
        if let Some(remote) = &download.remote {
            text += &format!("  commit   {}\n  {}\n", remote.commit, remote.license_text(&settings.hub));
        }
        text += &format!("  folder   {}\n", download.folder.display());
    }
    if outcome == Outcome::Interrupted {
        text += "interrupted: run the same command to resume\n";
    }
    let next = if outcome == Outcome::Complete { next(settings, all) } else { Vec::new() };
    text += &next_lines(&next);
    let models: Vec<Json> = all
        .iter()
        .map(|download| {
            let remote = download.remote.as_ref();
            json!({
                "name": download.name,
                "folder": download.folder,
                "commit": remote.map(|remote| &remote.commit),
                "license": remote.and_then(|remote| remote.license.as_ref()),
                "fetched_bytes": download.fetched,
            })
        })
        .collect();
    let json = json!({"command": "model get", "models": models, "dry_run": settings.dry_run, "next": next,
                      "complete": outcome == Outcome::Complete, "exit_status": outcome.exit_code()});
    (text, json)
}

/// What may be done with what is there.
fn next(settings: &GetSettings, all: &[Download]) -> Vec<String> {
    if settings.dry_run {
        return vec![format!("clipcap model get {}", quoted_word(&settings.name))];
    }
    let part = |kind: Kind, flag: &str, missing: &str| {
        let download = all.iter().find(|download| download.kind == Some(kind));
        let given = download.map_or(missing.to_string(), |download| match settings.out {
            Some(_) => quoted(&download.folder),
            None => download.name.clone(),
        });
        format!("--{flag} {given}")
    };
    let (clip, decoder) = (part(Kind::Image, "clip", "CLIP"), part(Kind::Decoder, "gpt2", "GPT2"));
    vec![
        format!("clipcap model init {clip} {decoder} --mapper mlp -o models/new             # to train your own"),
        format!("clipcap model import {clip} {decoder} --checkpoint clipcap.pt -o models/clipcap"),
    ]
}

/// `512 B`, `4.2 MB`, `1.3 GB`
fn size(bytes: u64) -> String {
    match bytes {
        b if b < 1000 => format!("{b} B"),
        b if b < 1_000_000 => format!("{:.1} kB", b as f64 / 1e3),
        b if b < 1_000_000_000 => format!("{:.1} MB", b as f64 / 1e6),
        b => format!("{:.1} GB", b as f64 / 1e9),
    }
}
