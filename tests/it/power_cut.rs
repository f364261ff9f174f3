//! A power cut at any flush: what was not flushed is lost, names or contents or both, and the same command again ends with the same bytes.
//!
//! A small library (`tests/fixtures/power.c`) writes down what a command does to its folder. From that the folder is made as a disk could
//! hold it after a cut. `scripts/power_cut.sh` does it on a real disk in a file. Here some flushes of each command; with CLIPCAP_FAULTS=all
//! every one of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use crate::common::run;
use crate::faults::{World, bytes};

/// What a command did to its folder.
#[derive(Debug)]
enum Step {
    Open { inode: u64, fresh: bool, path: String },
    Write { inode: u64, offset: usize, bytes: Vec<u8> },
    Cut { inode: u64, length: usize },
    Flush(u64),
    FlushFolder(String),
    Name(Name),
}

/// A change of names.
#[derive(Debug, Clone)]
enum Name {
    Add(String, usize),
    Rename(String, String),
    Link(String, String),
    Remove(String),
    Folder(String),
}

fn steps(log: &[u8], under: &str) -> Vec<Step> {
    let mut steps = vec![];
    let mut rest = log;
    while !rest.is_empty() {
        let number = |at: usize| u64::from_le_bytes(rest[1 + 8 * at..9 + 8 * at].try_into().unwrap());
        let (kind, a, b, length) = (rest[0], number(0), number(1), number(2) as usize);
        let content = &rest[25..25 + length];
        rest = &rest[25 + length..];
        let path = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap()[under.len()..].trim_matches('/').to_owned();
        let two = || (path(&content[..a as usize]), path(&content[a as usize..]));
        steps.push(match kind {
            b'C' => Step::Open { inode: a, fresh: b == 1, path: path(content) },
            b'W' => Step::Write { inode: a, offset: b as usize, bytes: content.to_vec() },
            b'T' => Step::Cut { inode: a, length: b as usize },
            b'S' => Step::Flush(a),
            b'D' => Step::FlushFolder(path(content)),
            b'R' => Step::Name(Name::Rename(two().0, two().1)),
            b'L' => Step::Name(Name::Link(two().0, two().1)),
            b'U' | b'X' => Step::Name(Name::Remove(path(content))),
            b'M' => Step::Name(Name::Folder(path(content))),
            other => panic!("a record of kind {other}"),
        });
    }
    steps
}

/// Which changes of names a disk holds after the cut.
#[derive(Debug, Clone, Copy)]
enum Names {
    /// Those that a flush followed: of the folder, or of the new file itself.
    Flushed,
    /// All up to the middle between the last flush of anything and the cut, as a journal keeps their order.
    Half,
    All,
}

/// What of a file's bytes that were not flushed is there.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bytes {
    None,
    Half,
}

const CUTS: [(Names, Bytes); 4] =
    [(Names::Flushed, Bytes::None), (Names::Half, Bytes::None), (Names::All, Bytes::None), (Names::All, Bytes::Half)];

#[derive(Default)]
struct File {
    now: Vec<u8>,
    flushed: Option<Vec<u8>>,
}

/// A disk under way.
#[derive(Default)]
struct Disk {
    files: Vec<File>,
    by_inode: HashMap<u64, usize>,
    names: Vec<Name>,
    flushed: BTreeSet<usize>,
    /// Names that there were at the last flush of anything.
    at_flush: usize,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Disk {
    fn after(steps: &[Step]) -> Self {
        let mut disk = Self::default();
        steps.iter().for_each(|step| disk.take(step));
        disk
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Open { inode, fresh, path } => {
                if *fresh || !self.by_inode.contains_key(inode) {
                    self.files.push(File::default());
                    self.by_inode.insert(*inode, self.files.len() - 1);
                    self.names.push(Name::Add(path.clone(), self.files.len() - 1));
                }
            }
            Step::Write { inode, offset, bytes } => {
                let now = &mut self.file(*inode).now;
                now.resize(now.len().max(offset + bytes.len()), 0);
                now[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Step::Cut { inode, length } => self.file(*inode).now.resize(*length, 0),
            Step::Flush(inode) => {
                let file = self.file(*inode);
                file.flushed = Some(file.now.clone());
                let id = self.by_inode[inode];
                let added = |name: &Name| matches!(name, Name::Add(_, file) if *file == id);
                self.flushed.extend((0..self.names.len()).filter(|at| added(&self.names[*at])));
                self.at_flush = self.names.len();
            }
            Step::FlushFolder(folder) => {
                let is_in = |name: &Name| match name {
                    Name::Add(path, _) | Name::Remove(path) | Name::Folder(path) => parent(path) == folder,
                    Name::Rename(from, to) | Name::Link(from, to) => parent(from) == folder || parent(to) == folder,
                };
                self.flushed.extend((0..self.names.len()).filter(|at| is_in(&self.names[*at])));
                self.at_flush = self.names.len();
            }
            Step::Name(name) => self.names.push(name.clone()),
        }
    }

    /// A file without a name where it was never opened under one: temporary files are so.
    fn file(&mut self, inode: u64) -> &mut File {
        let (files, next) = (&mut self.files, self.by_inode.entry(inode));
        let id = *next.or_insert_with(|| {
            files.push(File::default());
            files.len() - 1
        });
        &mut files[id]
    }

    /// Puts into `folder` what a cut leaves.
    fn cut(&self, names: Names, bytes: Bytes, folder: &Path) {
        let half = self.at_flush + (self.names.len() - self.at_flush) / 2;
        // Folders, and the file of each name.
        let mut there: BTreeMap<String, Option<usize>> = BTreeMap::new();
        for (at, name) in self.names.iter().enumerate() {
            let stays = match names {
                Names::Flushed => self.flushed.contains(&at),
                Names::Half => at < half,
                Names::All => true,
            };
            if !stays {
                continue;
            }
            match name {
                Name::Add(path, file) => drop(there.insert(path.clone(), Some(*file))),
                Name::Folder(path) => drop(there.insert(path.clone(), None)),
                Name::Remove(path) => drop(there.remove(path)),
                Name::Link(from, to) => {
                    if let Some(file) = there.get(from).copied() {
                        there.insert(to.clone(), file);
                    }
                }
                Name::Rename(from, to) => {
                    let inside = format!("{from}/");
                    let moved: Vec<String> =
                        there.keys().filter(|path| *path == from || path.starts_with(&inside)).cloned().collect();
                    for path in moved {
                        let entry = there.remove(&path).unwrap();
                        there.insert(format!("{to}{}", &path[from.len()..]), entry);
                    }
                }
            }
        }
        for (path, file) in &there {
            // In a folder that is lost too.
            let whole = folder.join(path);
            match file {
                None => drop(fs::create_dir(&whole)),
                Some(id) => {
                    let File { now, flushed } = &self.files[*id];
                    let kept = flushed.clone().unwrap_or_default();
                    let content = if bytes == Bytes::Half && *now != kept { &now[..now.len() / 2] } else { &kept };
                    drop(fs::write(&whole, content));
                }
            }
        }
    }
}

impl World {
    /// Cuts the power at flush after flush, and gives the same command again on what is left.
    fn cut_power(&self, name: &str, words: &[&str], differs: &[&str]) {
        let library = self.compiled("power");
        let whole = self.folder.path().join(format!("{name}-whole"));
        fs::create_dir(&whole).unwrap();
        let log = whole.with_extension("log");
        let mut command = self.command(words, &whole);
        run(command.env("LD_PRELOAD", &library).env("POWER_UNDER", &whole).env("POWER_LOG", &log), 0);
        let wanted = bytes(&whole, differs);
        let steps = steps(&fs::read(&log).unwrap(), whole.to_str().unwrap());
        let is_flush = |step: &Step| matches!(step, Step::Flush(_) | Step::FlushFolder(_));
        // Before each flush and behind it, and at the end.
        let flushes = steps.iter().enumerate().filter(|(_, step)| is_flush(step)).flat_map(|(at, _)| [at, at + 1]);
        let points: BTreeSet<usize> = flushes.chain([steps.len()]).collect();
        let points: Vec<usize> = points.into_iter().collect();
        assert!(points.len() > 2, "{name}: nothing is flushed");
        let everywhere = std::env::var_os("CLIPCAP_FAULTS").is_some();
        let mut seen: Vec<BTreeMap<String, Vec<u8>>> = vec![];
        for (turn, &(names, content)) in CUTS.iter().enumerate() {
            // All of them, or some: other ones for each way.
            let chosen: BTreeSet<usize> = match everywhere {
                true => points.iter().copied().collect(),
                false => (0..3).map(|i| points[((4 * i + turn) * points.len() / 12).min(points.len() - 1)]).collect(),
            };
            for at in chosen {
                let here = self.folder.path().join(format!("{name}-cut"));
                fs::create_dir(&here).unwrap();
                Disk::after(&steps[..at]).cut(names, content, &here);
                let left = bytes(&here, &[]);
                if !seen.contains(&left) {
                    let what = format!("{name}: {names:?} names, {content:?} of the bytes, cut at step {at} of {}", steps.len());
                    let again = self.command(words, &here).output().unwrap();
                    let told = String::from_utf8_lossy(&again.stderr);
                    let files: Vec<&String> = left.keys().collect();
                    assert!(again.status.success(), "{what}: {told}\nleft were {files:?}");
                    let mut found = bytes(&here, differs);
                    found.retain(|name, _| !name.contains(".tmp-"));
                    let other: Vec<_> = wanted.keys().chain(found.keys()).filter(|n| wanted.get(*n) != found.get(*n)).collect();
                    assert!(other.is_empty(), "{what}: other bytes in {other:?}: {told}\nleft were {files:?}");
                    seen.push(left);
                }
                fs::remove_dir_all(&here).unwrap();
            }
        }
        println!("{name}: {} steps, {} points, {} different disks", steps.len(), points.len(), seen.len());
    }
}

#[test]
fn tables_of_captions() {
    let world = World::new();
    let words = ["caption", "IMAGES", "--model", "MODEL", "--device", "cpu", "--max-new-tokens", "5", "--out"];
    world.cut_power("table", &[&words[..], &["out.parquet"]].concat(), &[]);
    world.cut_power("parts", &[&words[..], &["out/"]].concat(), &[]);
}

#[test]
fn datasets_embeddings_and_statistics() {
    let world = World::new();
    let prepare = ["prepare", "--captions", "CAPTIONS", "--images", "IMAGES", "--out"];
    world.cut_power("prepare", &[&prepare[..], &["out", "--with-images"]].concat(), &[]);
    let embed = ["embed", "--images", "IMAGES", "--model", "MODEL", "--device", "cpu", "--out", "out"];
    world.cut_power("embed", &embed, &[]);
    world.cut_power("stats", &["stats", "CAPTIONS", "--units", "char", "--out", "out"], &[]);
}

#[test]
fn reports_models_and_exports() {
    let world = World::new();
    let caption = ["caption", "IMAGES", "--model", "MODEL", "--device", "cpu", "--max-new-tokens", "5", "--out", "table.parquet"];
    run(&mut world.command(&caption, world.folder.path()), 0);
    world.cut_power("report", &["report", "TABLE", "--images", "IMAGES", "--out", "out.html"], &[]);
    world.cut_power("export", &["export", "TABLE", "--images", "IMAGES", "--to", "imagefolder", "--out", "out"], &[]);
    let init = ["model", "init", "--clip", "vit-tiny", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--overwrite", "--out", "out"];
    world.cut_power("init", &init, &[]);
}

#[test]
fn training() {
    let world = World::new();
    world.with_embeddings();
    world.cut_power("train", &World::TRAIN, &World::OF_TRAINING);
}
