//! Prefixes as folders: what is in one, in no order, and the next ones while it is worked on.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use object_store::{ListResult, ObjectStore, ObjectStoreExt};
use tokio::task::JoinHandle;

use super::store::{Object, io_error, object, runtime, wait};
use super::{Name, Place, is_web};

/// Prefixes that are listed ahead.
const AHEAD: usize = 8;

/// Asks what a URL names.
///
/// # Errors
/// Nothing is there; it may not be read; the server could not be reached.
pub fn place(url: &Path) -> io::Result<Place> {
    let Object { store, key } = object(url)?;
    let text = url.to_string_lossy();
    let may_be_an_object = !key.as_ref().is_empty() && (is_web(url) || !text.ends_with('/'));
    if may_be_an_object && !(is_web(url) && text.split('?').next().is_some_and(|path| path.ends_with('/'))) {
        let found = wait(async { store.head(&key).await });
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
    let Object { store, key } = object(url)?;
    let prefix = Some(key).filter(|key| !key.as_ref().is_empty());
    Ok(names_in(wait(async { store.list_with_delimiter(prefix.as_ref()).await })?))
}

fn names_in(listed: ListResult) -> Vec<Name> {
    let named = |key: &object_store::path::Path, is_folder| key.filename().map(|name| Name { name: name.into(), is_folder });
    let folders = listed.common_prefixes.iter().filter_map(|key| named(key, true));
    // A key that ends with a slash is what some tools make for an empty folder.
    folders.chain(listed.objects.iter().filter_map(|object| named(&object.location, false))).collect()
}

/// Folders that are being listed before their turn.
#[derive(Default)]
pub struct Ahead(HashMap<PathBuf, JoinHandle<object_store::Result<ListResult>>>);

impl Ahead {
    /// Begins with the first of these folders, as far as there is room.
    pub fn ask(&mut self, folders: impl Iterator<Item = PathBuf>) {
        for folder in folders.take(AHEAD) {
            if self.0.len() >= AHEAD {
                return;
            }
            if let (false, Ok(runtime), Ok(Object { store, key })) = (self.0.contains_key(&folder), runtime(), object(&folder)) {
                let listed = runtime.spawn(async move { store.list_with_delimiter(Some(&key)).await });
                self.0.insert(folder, listed);
            }
        }
    }

    /// The names in a folder, which may be on their way.
    ///
    /// # Errors
    /// As [`names`].
    pub fn names(&mut self, folder: &Path) -> io::Result<Vec<Name>> {
        match self.0.remove(folder) {
            None => names(folder),
            Some(coming) => {
                let listed = runtime()?.block_on(coming).map_err(|_| io::Error::other("a request ended unexpectedly"))?;
                Ok(names_in(listed.map_err(|error| io_error(&error))?))
            }
        }
    }
}
