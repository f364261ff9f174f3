//! Whether a shared library is whole: one that was copied half kills the process that loads it (SIGBUS), or worse, does not.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::files::paths_in;

/// Checks a library, and those of ONNX Runtime and its providers that lie beside it.
///
/// # Errors
/// What is wrong with the first that is not whole.
pub(super) fn check(library: &Path) -> Result<(), String> {
    check_one(library)?;
    let Some(folder) = library.parent() else { return Ok(()) };
    let mut others = paths_in(folder).unwrap_or_default();
    others.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.contains(".so")
            && ["libonnxruntime", "libopenvino", "libtbb"].iter().any(|begin| name.starts_with(begin))
            && path.is_file()
    });
    others.iter().filter(|path| *path != library).try_for_each(|path| {
        let name = path.file_name().unwrap_or_default().display();
        check_one(path).map_err(|problem| format!("{name} beside it cannot be used: {problem}"))
    })
}

fn check_one(path: &Path) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("it cannot be read ({error})");
    let mut file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let needed = needed_bytes(&mut file).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => format!("it ends within its headers, after {length} bytes: was it copied to its end?"),
        _ => error.to_string(),
    })?;
    if length < needed {
        return Err(format!(
            "it has {length} bytes and its headers speak of {needed}: it was not copied to its end; install it again"
        ));
    }
    Ok(())
}

/// How long an ELF file of 64 bits must be to hold all its segments and its table of sections, which ends it.
fn needed_bytes(file: &mut File) -> io::Result<u64> {
    let mut header = [0; 64];
    file.read_exact(&mut header)?;
    let number =
        |from: usize, size: usize| header[from..from + size].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    if !header.starts_with(b"\x7FELF\x02\x01") {
        return Err(io::Error::other("it is not a 64-bit shared library"));
    }
    let (segments, sections) = (number(32, 8), number(40, 8));
    let (segment_bytes, num_segments) = (number(54, 2), number(56, 2));
    let mut needed = sections.saturating_add(number(58, 2) * number(60, 2));
    for n in 0..num_segments {
        file.seek(SeekFrom::Start(segments.saturating_add(n * segment_bytes)))?;
        let mut segment = [0; 56];
        file.read_exact(&mut segment)?;
        let number = |from: usize| segment[from..from + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        needed = needed.max(number(8).saturating_add(number(32)));
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that every Linux has: this test's own program.
    #[test]
    fn a_library_that_was_copied_half_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let library = folder.path().join("libonnxruntime.so");
        std::fs::write(&library, &whole).unwrap();
        assert_eq!(check(&library), Ok(()));
        let beside = folder.path().join("libonnxruntime_providers_shared.so");
        for length in [0, 40, 200, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&beside, &whole[..length]).unwrap();
            let error = check(&library).unwrap_err();
            assert!(error.contains("providers_shared") && error.contains("copied"), "{length}: {error}");
            assert!(check(&beside).is_err());
        }
        std::fs::write(&beside, "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 123456789\n")
            .unwrap();
        assert!(check(&beside).unwrap_err().contains("not a 64-bit shared library"));
    }
}
