//! What lies in a folder: which files hold captions, in which layout, language and encoding, of which images; told before anything is made of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::dataset::assemble::Listed;
use crate::dataset::captions::{Columns, Encoding, Format};
use crate::dataset::listing::{Entry, Kind, Listing};
use crate::dataset::splits::canonical;
use crate::dataset::tar::called_a_tar;
use crate::dataset::wanted::Wanted;
use crate::image::called_an_image;

mod language;
mod look;
mod table;

use look::{Look, look_at};

/// What is asked of a folder.
#[derive(Debug, Clone, Default)]
pub struct Question {
    pub folder: PathBuf,
    /// Where the dataset is to be: nothing in there is looked at.
    pub out: PathBuf,
    /// `zh`, `en` and so on, or `all`.
    pub language: Option<String>,
    pub format: Option<Format>,
    pub columns: Columns,
    pub encoding: Option<Encoding>,
    pub wanted: Wanted,
}

/// What a folder holds, and what is taken of it.
#[derive(Debug)]
pub struct Discovery {
    pub folder: PathBuf,
    pub files: Vec<FileFound>,
    /// The folder of all images, or the tars that hold them; nothing where there is no image.
    pub roots: Vec<PathBuf>,
    pub num_images: usize,
    pub captions: Vec<PathBuf>,
    /// Folders that the names in a caption file are relative to, seen from `images`.
    pub folders: BTreeMap<PathBuf, String>,
    pub columns: Columns,
    pub encoding: Option<Encoding>,
    pub split_lists: Vec<(String, PathBuf)>,
    /// What the reader should know, with the flag that decides.
    pub notes: Vec<String>,
    /// Sidecars as one caption file; it goes with this.
    sidecars: Option<tempfile::TempDir>,
}

/// A file (or all sidecars) and what it was taken for.
#[derive(Debug, Clone, Default)]
pub struct FileFound {
    /// From the folder on.
    pub name: String,
    pub layout: String,
    pub rows: u64,
    pub bad: u64,
    pub split: String,
    pub language: String,
    pub encoding: String,
    /// Images that it names, and those of them that are there.
    pub named: u64,
    pub found: u64,
    /// Why it is not taken; None: it is.
    pub left: Option<String>,
}

/// What a caption file's name ends in.
const ENDINGS: [&str; 8] = ["txt", "tsv", "csv", "json", "jsonl", "ndjson", "parquet", "caption"];

/// Files that go with data and are none.
const NO_CAPTIONS: [&str; 8] =
    ["readme", "license", "licence", "requirements", "manifest", "dataset_infos", "dataset_info", "package"];

/// Looks through a folder. Nothing is written but sidecars' captions as one file, in a temporary folder.
///
/// # Errors
/// The folder cannot be read, nothing in it is a caption file, or what it holds can be taken in several ways: the message names the flag
/// that decides.
pub fn discover(question: &Question) -> Result<Discovery> {
    let folder = &question.folder;
    if !folder.is_dir() {
        let is_file = folder.is_file();
        let cure = if is_file { "; a caption file is given with --captions" } else { "" };
        bail!("no such folder: {}{cure}", folder.display());
    }
    let is_ours = |folder: &Path| folder.join("captions.parquet").is_file() && folder.join("images.parquet").is_file();
    if is_ours(folder) {
        bail!("{} is a dataset already: `clipcap show {0}` looks into it", folder.display());
    }
    let own: Vec<PathBuf> = Some(question.out.clone()).into_iter().filter(|out| !out.as_os_str().is_empty()).collect();
    let listing = Listing::new(std::slice::from_ref(folder), &own, &question.wanted)?;
    let entries: Vec<Entry> = listing.iter().filter(|entry| entry.kind == Kind::File).collect();
    let is_image = |entry: &&Entry| called_an_image(&entry.path);
    let images = common_folder(entries.iter().filter(is_image).map(|entry| entry.path.as_path()), folder);
    let tars: Vec<PathBuf> = entries.iter().map(|entry| entry.path.clone()).filter(|path| called_a_tar(path)).collect();
    let tars = if images.is_some() { Vec::new() } else { tars };
    let listed: Vec<Entry> = match &images {
        Some(root) => Listing::new(std::slice::from_ref(root), &own, &question.wanted)?
            .iter()
            .filter(|entry| entry.kind == Kind::File && called_an_image(&entry.path))
            .collect(),
        None => Vec::new(),
    };
    let mut discovery = Discovery {
        folder: folder.clone(),
        files: Vec::new(),
        num_images: listed.len(),
        roots: if tars.is_empty() { images.iter().cloned().collect() } else { tars.clone() },
        captions: Vec::new(),
        folders: BTreeMap::new(),
        columns: question.columns.clone(),
        encoding: question.encoding,
        split_lists: Vec::new(),
        notes: Vec::new(),
        sidecars: None,
    };
    let stems: HashSet<PathBuf> = listed.iter().map(|entry| entry.path.with_extension("")).collect();
    let is_sidecar = |path: &Path| {
        let ending = path.extension().unwrap_or_default();
        (ending == "txt" || ending == "caption") && (stems.contains(&path.with_extension("")) || stems.contains(path))
    };
    let (mut looks, names) = (Vec::new(), as_listed(&listed));
    let is_wanted = |path: &PathBuf| tars.contains(path) || is_candidate(path) && !is_sidecar(path);
    for entry in entries.iter().filter(|entry| is_wanted(&entry.path)) {
        if entry.path.parent().is_some_and(is_ours) {
            continue;
        }
        let prefix = images.as_ref().and_then(|root| prefix_of(&entry.path, root));
        let name = entry.path.strip_prefix(folder).unwrap_or(&entry.path).display().to_string();
        looks.push(look_at(&entry.path, name, prefix, question, &names));
    }
    if let Some(look) = discovery.sidecars(&listed, question)? {
        looks.push(look);
    }
    discovery.choose(looks, question)?;
    Ok(discovery)
}

fn as_listed(entries: &[Entry]) -> Vec<Listed<'_>> {
    entries.iter().map(|entry| Listed { path: &entry.image_path, id: &entry.image_id }).collect()
}

/// The deepest folder that holds all of these files.
fn common_folder<'a>(mut files: impl Iterator<Item = &'a Path>, below: &Path) -> Option<PathBuf> {
    let mut common = files.next()?.parent()?.to_path_buf();
    for file in files {
        while !file.starts_with(&common) && common != below {
            common.pop();
        }
    }
    Some(common)
}

fn is_candidate(path: &Path) -> bool {
    let lower = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().to_lowercase();
    let (stem, ending) = (lower(path.file_stem()), lower(path.extension()));
    ENDINGS.contains(&ending.as_str()) && !NO_CAPTIONS.contains(&stem.as_str())
}

/// Of an imagefolder's metadata file, its own folder as seen from the images': the names in it begin there.
fn prefix_of(path: &Path, images: &Path) -> Option<String> {
    if path.file_stem().is_none_or(|stem| stem != "metadata") {
        return None;
    }
    let inside = path.parent()?.strip_prefix(images).ok()?;
    let prefix = crate::dataset::listing::image_path(inside.as_os_str().as_encoded_bytes());
    (!prefix.is_empty()).then_some(prefix)
}

impl Discovery {
    /// Text files beside pictures, as one caption file.
    fn sidecars(&mut self, listed: &[Entry], question: &Question) -> Result<Option<Look>> {
        let mut lines = String::new();
        let (mut encodings, mut count) = (BTreeSet::new(), 0u64);
        for entry in listed {
            let beside = |ending: &str| {
                let with = entry.path.with_extension(ending);
                let mut behind = entry.path.clone().into_os_string();
                behind.push(format!(".{ending}"));
                [with, behind.into()].into_iter().find(|path: &PathBuf| path.is_file())
            };
            let Some(path) = beside("caption").or_else(|| beside("txt")) else { continue };
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let (text, encoding) = look::decoded(&bytes, question.encoding);
            encodings.insert(encoding);
            let captions: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            lines += &format!("{}\n", json!({"file_name": entry.image_path, "caption": captions}));
            count += 1;
        }
        if count == 0 {
            return Ok(None);
        }
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let path = folder.path().join("sidecars.jsonl");
        fs::write(&path, lines).with_context(|| format!("cannot write {}", path.display()))?;
        self.sidecars = Some(folder);
        let name = format!("{count} sidecar files");
        let mut look = look_at(&path, name, None, &Question { encoding: None, ..question.clone() }, &as_listed(listed));
        look.file.layout = "sidecars".into();
        look.file.encoding = encodings.into_iter().collect::<Vec<_>>().join(", ");
        look.encoding = None;
        Ok(Some(look))
    }

    /// Decides what is taken.
    fn choose(&mut self, mut looks: Vec<Look>, question: &Question) -> Result<()> {
        let has_images = self.num_images > 0;
        for look in looks.iter_mut().filter(|look| look.file.left.is_none()) {
            if look.file.rows == 0 {
                look.file.left = Some(look.first_fault.clone().unwrap_or_else(|| "no captions".into()));
            } else if has_images && look.file.found == 0 {
                look.file.left = Some("names no image in the folder".into());
            }
        }
        for look in looks.iter_mut().filter(|look| look.is_list && look.file.left.is_some()) {
            look.file.layout = "list of images".into();
            match look.split {
                Some(split) => {
                    look.file.left = None;
                    self.split_lists.push((canonical(split), look.path.clone()));
                }
                None => look.file.left = Some("a list of images of no split: --split-list NAME=FILE".into()),
            }
        }
        self.choose_language(&mut looks, question)?;
        // The same captions in two layouts are taken once.
        let mut seen: BTreeMap<u64, String> = BTreeMap::new();
        for look in looks.iter_mut().filter(|look| look.file.left.is_none() && !look.is_list) {
            match seen.get(&look.content) {
                Some(other) => look.file.left = Some(format!("the same captions as {other}")),
                None => drop(seen.insert(look.content, look.file.name.clone())),
            }
        }
        let mut encodings = BTreeMap::new();
        for look in looks.iter().filter(|look| look.file.left.is_none() && !look.is_list) {
            self.captions.push(look.path.clone());
            if let Some(prefix) = &look.prefix {
                self.folders.insert(look.path.clone(), prefix.clone());
            }
            if let Some(encoding) = look.encoding {
                encodings.entry(encoding.name()).or_insert((encoding, look.file.name.clone()));
            }
            if let Some(columns) = &look.columns {
                if self.columns != question.columns && self.columns != *columns {
                    bail!(
                        "{}: its columns are others than those of the files before: give --columns, or --captions",
                        look.file.name
                    );
                }
                self.columns = columns.clone();
            }
            self.notes.extend(look.notes.iter().map(|note| format!("{}: {note}", look.file.name)));
        }
        if encodings.len() > 1 {
            let files: Vec<String> = encodings.iter().map(|(name, (_, file))| format!("{file} is {name}")).collect();
            bail!(
                "{}: files of several encodings: convert them to one, or prepare them apart (--captions, --encoding)",
                files.join(", ")
            );
        }
        self.encoding = question.encoding.or(encodings.into_values().next().map(|(encoding, _)| encoding));
        self.files = looks.into_iter().map(|look| look.file).collect();
        if self.captions.is_empty() {
            let seen = if self.files.is_empty() { String::new() } else { format!("\n{}", self.table().trim_end()) };
            // Nothing else can be wrong with a file of captions in one language.
            let why = match self.files.iter().any(|file| file.rows > 0) {
                true => {
                    "captions were found in it, and none that can be taken: are their pictures elsewhere? --captions and --images say where"
                }
                false => "no captions found in it: give the files with --captions, and perhaps --format or --columns",
            };
            bail!("{}: {why}{seen}", self.folder.display());
        }
        if self.roots.is_empty() {
            self.notes.push("no images: captions are prepared alone (--images DIR has them elsewhere)".into());
        }
        let has_split = self.files.iter().any(|file| file.left.is_none() && !file.split.is_empty());
        if !has_split {
            self.notes.push("no splits are given: --splits train=0.9,dev=0.05,test=0.05 makes one".into());
        }
        Ok(())
    }

    /// Of files in several languages those of one are taken: Chinese, unless another was asked for.
    fn choose_language(&mut self, looks: &mut [Look], question: &Question) -> Result<()> {
        let there: BTreeSet<String> = looks
            .iter()
            .filter(|look| look.file.left.is_none() && !look.is_list)
            .map(|look| look.file.language.clone())
            .filter(|language| !language.is_empty())
            .collect();
        let wanted = match question.language.as_deref() {
            Some("all") => return Ok(()),
            Some(language) => language.to_string(),
            None if there.len() < 2 => return Ok(()),
            None if there.contains("zh") => "zh".to_string(),
            None => {
                let names: Vec<&str> = there.iter().map(String::as_str).collect();
                bail!("captions in several languages ({}): --language says which to take, or all", names.join(", "));
            }
        };
        for look in looks.iter_mut().filter(|look| look.file.left.is_none() && !look.is_list) {
            if !look.file.language.split('+').any(|language| language == wanted) {
                look.file.left = Some(format!("another language (--language {} or all)", look.file.language));
            }
        }
        if question.language.is_none() {
            self.notes.push(format!("captions in several languages: those in {wanted} are taken (--language decides)"));
        }
        Ok(())
    }
}
