//! Camera raw inside TIFF: DNG, NEF, CR2, ARW and their kin, whose first picture is often a thumbnail that must not be taken for the photo.

use std::collections::HashSet;

use super::directory::{Directory, File};
use super::tag;

/// More directories than a camera writes: what is beyond is not looked at.
const MAX_DIRECTORIES: usize = 64;

/// The kind of camera raw that a TIFF file is, or none.
pub(super) fn camera_raw(file: File<'_>, first: u64) -> Option<&'static str> {
    if file.bytes.get(8..10) == Some(b"CR") {
        return Some("CR2");
    }
    if matches!(file.bytes.get(8..12), Some(b"IIII" | b"MMMM")) {
        return Some("IIQ");
    }
    let (mut pending, mut seen) = (vec![first], HashSet::new());
    while let Some(at) = pending.pop().filter(|_| seen.len() < MAX_DIRECTORIES) {
        if at == 0 || !seen.insert(at) {
            continue;
        }
        let Ok(directory) = file.directory(at) else { continue };
        if let Some(kind) = raw_kind(&directory) {
            return Some(kind);
        }
        pending.push(directory.next);
        pending.extend(directory.list(tag::SUB_DIRECTORIES, 16).unwrap_or_default());
    }
    None
}

fn raw_kind(directory: &Directory<'_>) -> Option<&'static str> {
    if directory.has(tag::DNG_VERSION) || directory.has(tag::DNG_BACKWARD_VERSION) {
        return Some("DNG");
    }
    match directory.or(tag::COMPRESSION, 1).unwrap_or(1) {
        34713 | 32769 => return Some("NEF"),
        32767 => return Some("ARW"),
        32770 | 32772 => return Some("SRW"),
        65535 => return Some("PEF"),
        65000 | 65024 | 65536 => return Some("a Kodak or Leica camera's"),
        _ => {}
    }
    match directory.first(tag::PHOTOMETRIC) {
        Ok(Some(32803)) => Some("pixels of a colour filter array"),
        Ok(Some(34892)) => Some("linear sensor data"),
        _ => None,
    }
}
