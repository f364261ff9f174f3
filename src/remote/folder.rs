//! Prefixes as folders: what is in one, in no order, and the next ones while it is worked on.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use object_store::list::PaginatedListOptions;
use object_store::path::Path as Key;
use object_store::{Error, ListResult, ObjectStore};
use tokio::task::JoinHandle;

use super::fetch::head;
use super::store::{Object, io_error, object, runtime, wait};
use super::{Name, Place, Version, is_web};

/// Prefixes that are listed ahead, and names of each; S3 tells a thousand at a time.
const AHEAD: usize = 8;
const NAMES_AHEAD: usize = 1 << 16;

/// Tries of a page again, beside those of each request: the library does not ask again where an answer breaks off in its middle.
const CUT_OFF: usize = 3;

/// Asks what a URL names.
///
/// # Errors
/// Nothing is there; it may not be read; the server could not be reached.
pub fn place(url: &Path) -> io::Result<Place> {
    let Object { store, key, .. } = object(url)?;
    let text = url.to_string_lossy();
    let may_be_an_object = !key.as_ref().is_empty() && (is_web(url) || !text.ends_with('/'));
    if may_be_an_object && !(is_web(url) && text.split('?').next().is_some_and(|path| path.ends_with('/'))) {
        let found = wait(async { head(&store, &key).await });
        match found {
            Ok(_) => return Ok(Place::Object),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_web(url) => {}
            Err(error) => return Err(error),
        }
    }
    let prefix = Some(&key).filter(|key| !key.as_ref().is_empty()).cloned();
    let listed = wait(async { store.list_with_delimiter(prefix.as_ref()).await })?;
    match listed.objects.is_empty() && listed.common_prefixes.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "nothing is there")),
        false => Ok(Place::Folder),
    }
}

/// The names in a folder.
///
/// # Errors
/// As [`place`]. A folder that is gone is empty.
pub fn names(url: &Path) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    Ahead::default().each(url, |name| {
        names.push(name);
        Ok(())
    })?;
    Ok(names)
}

/// Where a listing stands: the names so far, and what to ask the next ones with.
struct Pages {
    names: Vec<Name>,
    next: Option<String>,
}

/// Some names of a folder: at least a page of them, and so many that they are no less than `most` or all.
async fn pages(place: &Object, mut token: Option<String>, most: usize) -> object_store::Result<Pages> {
    let prefix = Some(place.key.clone()).filter(|key| !key.as_ref().is_empty());
    let Some(paged) = &place.paged else {
        let listed = place.store.list_with_delimiter(prefix.as_ref()).await?;
        return Ok(Pages { names: names_in(listed, &place.key).collect(), next: None });
    };
    let prefix = prefix.map(|prefix| format!("{prefix}/"));
    let mut names = Vec::new();
    loop {
        let delimiter = Some("/".into());
        let options = PaginatedListOptions { delimiter, page_token: token, ..PaginatedListOptions::default() };
        let mut cut_off = 0;
        let page = loop {
            match paged.list_paginated(prefix.as_deref(), options.clone()).await {
                Err(Error::Generic { .. }) if cut_off < CUT_OFF => cut_off += 1,
                page => break page?,
            }
        };
        names.extend(names_in(page.result, &place.key));
        token = page.page_token;
        if token.is_none() || names.len() >= most {
            return Ok(Pages { names, next: token });
        }
    }
}

fn names_in(listed: ListResult, folder: &Key) -> impl Iterator<Item = Name> {
    // A key that ends with a slash is what some tools make for a folder.
    let folders = listed.common_prefixes.into_iter().map(|key| (key, None));
    let objects = listed.objects.into_iter().map(|object| (object.location.clone(), Some(Version::of(&object))));
    folders
        .chain(objects)
        .filter(move |(key, _)| key != folder)
        .filter_map(|(key, version)| Some(Name { name: key.filename()?.into(), is_folder: version.is_none(), version }))
}

/// Folders that are being listed before their turn.
#[derive(Default)]
pub struct Ahead(HashMap<PathBuf, JoinHandle<object_store::Result<Pages>>>);

impl Ahead {
    /// Begins with the first of these folders, as far as there is room.
    pub fn ask(&mut self, folders: impl Iterator<Item = PathBuf>) {
        for folder in folders.take(AHEAD) {
            if self.0.len() >= AHEAD {
                return;
            }
            if let (false, Ok(runtime), Ok(place)) = (self.0.contains_key(&folder), runtime(), object(&folder)) {
                let listed = runtime.spawn(async move { pages(&place, None, NAMES_AHEAD).await });
                self.0.insert(folder, listed);
            }
        }
    }

    /// Hands out the names in a folder, of which the first may be on their way. The next ones come while these are worked on.
    ///
    /// # Errors
    /// As [`names`]; what `each` says.
    pub fn each(&mut self, folder: &Path, mut each: impl FnMut(Name) -> io::Result<()>) -> io::Result<()> {
        let place = object(folder)?;
        let ask = |token| {
            let place = place.clone();
            io::Result::Ok(runtime()?.spawn(async move { pages(&place, token, 1).await }))
        };
        let mut coming = match self.0.remove(folder) {
            Some(coming) => coming,
            None => ask(None)?,
        };
        loop {
            let listed = runtime()?.block_on(coming).map_err(|_| io::Error::other("a request ended unexpectedly"))?;
            let Pages { names, next } = listed.map_err(|error| io_error(&error))?;
            let next = next.map(|token| ask(Some(token))).transpose()?;
            names.into_iter().try_for_each(&mut each)?;
            match next {
                Some(next) => coming = next,
                None => return Ok(()),
            }
        }
    }
}
