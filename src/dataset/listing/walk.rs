//! The walk through the folders of a [`Listing`].

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::after::{Listed, Standing};
use super::ahead::Ahead;
use super::names::{Found, Gathered, Names};
use super::urls::{Next, Urls};
use super::{Entry, Kind, Listing, Position, Root, Type, image_path};
use crate::dataset::naming::FolderIds;
use crate::dataset::tar;
use crate::dataset::wanted::{Left, LeftOut};
use crate::remote;

/// Iterates over the entries of a [`Listing`].
pub struct Walk<'a> {
    listing: &'a Listing,
    /// Roots still to come, last first.
    pending: Vec<Root>,
    /// The list of URLs that is being read.
    urls: Option<Urls>,
    /// The folders on the way down.
    open: Vec<Folder>,
    /// Real path of every folder entered so far.
    entered: HashSet<PathBuf>,
    /// Folders that are listed before their turn, elsewhere and here.
    elsewhere: remote::Ahead,
    here: Ahead,
    left_out: LeftOut,
    /// What an earlier walk has listed, until this one is behind it.
    listed: Option<Listed>,
    /// Folders were found that are links, or may be.
    has_links: bool,
}

struct Folder {
    path: PathBuf,
    /// Without symbolic links.
    real: PathBuf,
    /// Its path below its root.
    within: PathBuf,
    /// Raw bytes of the relative path, with a `/` behind it unless it is empty.
    prefix: Vec<u8>,
    names: Names,
    ids: FolderIds,
}

impl Iterator for Walk<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            if let Some(urls) = &mut self.urls {
                match urls.next() {
                    Ok(Next::Entry(entry)) => match self.listing.filter.leaves_named(Path::new(&entry.image_path), || false) {
                        Some(left) => self.left_out.add(left),
                        None => return Some(entry),
                    },
                    Ok(Next::Repeated) => self.left_out.add(Left::Repeated),
                    Ok(Next::End) => self.urls = None,
                    // It could be read to its end when it was checked.
                    Err(error) => {
                        self.urls = None;
                        return Some(unreadable("a list of URLs".into(), b"(list of URLs)".to_vec(), &error));
                    }
                }
                continue;
            }
            let found = match self.open.last_mut() {
                Some(folder) => match folder.names.pop() {
                    Ok(None) => {
                        self.open.pop();
                        continue;
                    }
                    Ok(Some(Found { name, kind, version })) => {
                        let relative = [&folder.prefix, name.as_bytes()].concat();
                        let path = folder.path.join(&name);
                        // Only a symbolic link leads elsewhere than where it lies.
                        let real = (kind == Some(Type::Folder)).then(|| folder.real.join(&name));
                        let place = Place { within: folder.within.join(&name), real };
                        let found = self.visit(path, relative, place, kind);
                        found.map(|entry| Entry { version: version.map(|version| *version), ..entry })
                    }
                    // The names were put aside, and the disk lost them.
                    Err(error) => {
                        let relative = folder.prefix.strip_suffix(b"/").unwrap_or(&folder.prefix).to_vec();
                        let lost = unreadable(folder.path.clone(), relative, &error);
                        self.open.pop();
                        Some(lost)
                    }
                },
                None => {
                    let Some(Root { path, prefix, is_folder }) = self.pending.pop() else {
                        *self.listing.left_out.lock().unwrap_or_else(PoisonError::into_inner) = self.left_out;
                        return None;
                    };
                    if let Some(list) = remote::listed_urls(&path) {
                        match Urls::open(list) {
                            Ok(urls) => self.urls = Some(urls),
                            Err(error) => return Some(unreadable(list.into(), b"(list of URLs)".to_vec(), &error)),
                        }
                        continue;
                    }
                    let known = remote::is_url(&path).then_some(if is_folder { Type::Folder } else { Type::File });
                    let found = self.visit(path, prefix, Place { within: PathBuf::new(), real: None }, known);
                    found.map(|entry| match entry.kind {
                        Kind::File if tar::called_a_tar(&entry.path) => Entry { kind: Kind::Tar, ..entry },
                        _ => entry,
                    })
                }
            };
            if found.is_some() {
                return found;
            }
        }
    }
}

/// Where something found is, beside its path.
struct Place {
    /// Below its root.
    within: PathBuf,
    /// Without symbolic links, as far as that is known.
    real: Option<PathBuf>,
}

impl<'a> Walk<'a> {
    /// Walks from the beginning, or on behind where an earlier walk stood.
    pub(super) fn new(listing: &'a Listing, behind: Option<&Position>) -> Self {
        Self {
            listing,
            pending: listing.roots.iter().rev().cloned().collect(),
            urls: None,
            open: Vec::new(),
            entered: HashSet::new(),
            elsewhere: remote::Ahead::default(),
            here: Ahead::default(),
            left_out: behind.map_or_else(LeftOut::default, |position| position.left_out),
            listed: behind.map(Listed::up_to),
            has_links: false,
        }
    }

    /// What was left out so far.
    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// Whether folders were found that are links: a walk that goes on later would not know that it was in them.
    pub fn has_links(&self) -> bool {
        self.has_links
    }

    /// Whether an earlier walk has listed this; the kind is None for a folder.
    fn was_listed(&mut self, relative: &[u8], kind: Option<Kind>) -> bool {
        let Some(listed) = &self.listed else { return false };
        let standing = listed.standing(relative);
        let was_listed = listed.has(standing, kind);
        if standing == Standing::Behind {
            self.listed = None;
        }
        was_listed
    }

    /// An entry for a file; a folder is entered instead.
    fn visit(&mut self, path: PathBuf, relative: Vec<u8>, place: Place, known: Option<Type>) -> Option<Entry> {
        if self.listed.as_ref().is_some_and(|listed| listed.standing(&relative) == Standing::Before) {
            return None;
        }
        // What the folder's listing says saves a call for plain files. A link is judged by what it leads to.
        let kind = if known == Some(Type::File) {
            Kind::File
        } else if known == Some(Type::Folder) && remote::is_url(&path) {
            return self.enter(path, relative, place);
        } else {
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => return self.enter(path, relative, place),
                Ok(metadata) if metadata.is_file() => Kind::File,
                Ok(_) => Kind::Special,
                Err(error) if known == Some(Type::Folder) => return Some(unreadable(path, relative, &error)),
                // In a folder that may not be searched, or gone by now: opening it will say so, where files fail.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Kind::File,
                Err(_) if known.is_some_and(|known| known != Type::Link) => Kind::File,
                Err(_) => Kind::BrokenLink,
            }
        };
        if self.was_listed(&relative, Some(kind)) {
            return None;
        }
        let image_path = image_path(&relative);
        let ids = self.open.last().map_or(&self.listing.ids, |folder| &folder.ids);
        Some(Entry { image_id: ids.of(&image_path), image_path, path, kind, version: None })
    }

    fn enter(&mut self, path: PathBuf, relative: Vec<u8>, place: Place) -> Option<Entry> {
        if self.was_listed(&relative, None) {
            return None;
        }
        let is_listed_above = self.listed.as_ref().is_some_and(|listed| listed.standing(&relative) == Standing::Above);
        let mut prefix = relative;
        self.has_links |= place.real.is_none() && !place.within.as_os_str().is_empty();
        // A folder that cannot be resolved cannot be listed either, and that is told.
        let real = place.real.or_else(|| fs::canonicalize(&path).ok()).unwrap_or_else(|| path.clone());
        if !self.entered.insert(real.clone()) {
            return None;
        }
        let left_out = self.left_out;
        let names = self.names(&path, &real, &place.within);
        if is_listed_above {
            // It was counted then.
            self.left_out = left_out;
        }
        match names {
            Ok((names, ids)) => {
                if !prefix.is_empty() {
                    prefix.push(b'/');
                }
                self.open.push(Folder { path, real, within: place.within, prefix, names, ids });
                self.look_ahead();
                None
            }
            Err(error) => Some(unreadable(path, prefix, &error)),
        }
    }

    /// Has the next folders listed while this one is worked on.
    fn look_ahead(&mut self) {
        for folder in self.open.iter().rev().take(2) {
            let next = folder.names.next_folders().map(|name| folder.path.join(name));
            if remote::is_url(&folder.path) { self.elsewhere.ask(next) } else { self.here.ask(next) }
        }
    }

    /// Everything in a folder that is not excluded and wanted, and the ids of its files.
    fn names(&mut self, folder: &Path, real: &Path, within: &Path) -> io::Result<(Names, FolderIds)> {
        let mut gathered = Gathered::new(self.listing.most_names);
        let Self { listing, here, elsewhere, left_out, .. } = self;
        let mut take = |found: Found, is_folder: &dyn Fn(&OsStr) -> bool| {
            match listing.filter.leaves(&found.name, &within.join(&found.name), || is_folder(&found.name)) {
                Some(left) => left_out.add(left),
                None => gathered.add(found)?,
            }
            Ok(())
        };
        if remote::is_url(folder) {
            elsewhere.each(folder, |remote::Name { name, is_folder, version }| {
                let kind = Some(if is_folder { Type::Folder } else { Type::File });
                take(Found { name: name.into(), kind, version: version.map(Box::new) }, &|_| is_folder)
            })?;
        } else {
            let excluded = listing.excluded.get(real).map_or(&[][..], Vec::as_slice);
            here.each(folder, |name, kind| match is_excluded(excluded, &name) {
                true => Ok(()),
                false => take(Found { name, kind, version: None }, &|name| {
                    kind == Some(Type::Folder) || kind == Some(Type::Link) && folder.join(name).is_dir()
                }),
            })?;
        }
        gathered.finish()
    }
}

fn unreadable(path: PathBuf, relative: Vec<u8>, error: &io::Error) -> Entry {
    let image_path = if relative.is_empty() { "./".to_owned() } else { image_path(&relative) + "/" };
    Entry { path, image_id: image_path.clone(), image_path, kind: Kind::UnreadableFolder(error.kind()), version: None }
}

fn is_excluded(excluded: &[OsString], name: &OsStr) -> bool {
    excluded.iter().any(|excluded| {
        let rest = name.as_bytes().strip_prefix(excluded.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b".tmp-"))
    })
}
