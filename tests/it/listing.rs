//! The walk over folders, on real ones with everything in them that folders may hold.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use clipcap::dataset::{Kind, Listing, ListingError, Wanted, relative_path};

fn touch(path: impl AsRef<Path>) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, b"x").unwrap();
}

fn listed(roots: &[&Path], exclude: &[&Path]) -> Vec<(String, Kind)> {
    let own = |paths: &[&Path]| paths.iter().map(|p| p.to_path_buf()).collect::<Vec<PathBuf>>();
    let listing = Listing::new(&own(roots), &own(exclude), &Wanted { hidden: true, ..Wanted::default() }).unwrap();
    let entries: Vec<_> = listing.iter().collect();
    assert_eq!(listing.count(), entries.iter().filter(|e| e.kind.is_found()).count() as u64);
    entries.into_iter().map(|entry| (entry.image_path, entry.kind)).collect()
}

fn names(roots: &[&Path], exclude: &[&Path]) -> Vec<String> {
    listed(roots, exclude).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn the_order_is_that_of_the_parts() {
    let root = tempfile::tempdir().unwrap();
    for name in ["b.jpg", "a/z.jpg", "a.jpg", "a!/y.jpg", "B.jpg", "a/a/a.jpg", "é.jpg"] {
        touch(root.path().join(name));
    }
    let expected = ["B.jpg", "a/a/a.jpg", "a/z.jpg", "a!/y.jpg", "a.jpg", "b.jpg", "é.jpg"];
    assert_eq!(names(&[root.path()], &[]), expected);
}

#[test]
fn odd_names_are_found_and_lead_back() {
    let root = tempfile::tempdir().unwrap();
    let odd: [&[u8]; 5] = [b"a b.jpg", "猫/一.jpg".as_bytes(), b"new\nline.jpg", b"\xFF\xC3.jpg", b"100%\\.jpg"];
    for name in odd {
        touch(root.path().join(OsStr::from_bytes(name)));
    }
    let found = names(&[root.path()], &[]);
    assert_eq!(found, ["100%25%5C.jpg", "a b.jpg", "new%0Aline.jpg", "猫/一.jpg", "%FF%C3.jpg"]);
    assert!(found.iter().all(|name| root.path().join(relative_path(name)).is_file()));
}

#[test]
fn folders_are_never_files_and_loops_end() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    touch(at("x.jpg/inside.jpg"));
    touch(elsewhere.path().join("deep/far.jpg"));
    symlink(root.path(), at("loop")).unwrap();
    symlink(at("x.jpg"), at("x.jpg/up")).unwrap();
    symlink(elsewhere.path(), at("link")).unwrap();
    symlink(elsewhere.path(), at("second link")).unwrap();
    symlink(at("x.jpg/inside.jpg"), at("to a file.jpg")).unwrap();
    symlink("nowhere", at("broken.jpg")).unwrap();
    symlink("circle.jpg", at("circle.jpg")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(at("y.jpg")).status().unwrap().success());
    symlink(at("y.jpg"), at("to a pipe")).unwrap();
    let expected = [
        ("broken.jpg", Kind::BrokenLink),
        ("circle.jpg", Kind::BrokenLink),
        ("link/deep/far.jpg", Kind::File),
        ("to a file.jpg", Kind::File),
        ("to a pipe", Kind::Special),
        ("x.jpg/inside.jpg", Kind::File),
        ("y.jpg", Kind::Special),
    ];
    assert_eq!(listed(&[root.path()], &[]), expected.map(|(name, kind)| (name.to_owned(), kind)));
}

#[test]
fn several_roots_start_with_their_last_parts() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    touch(at("one/z/1.jpg"));
    touch(at("two/a.jpg"));
    touch(at("one more.jpg"));
    let given = [at("two"), at("one"), at("one more.jpg")];
    let given: Vec<&Path> = given.iter().map(PathBuf::as_path).collect();
    assert_eq!(names(&given, &[]), ["one/z/1.jpg", "one more.jpg", "two/a.jpg"]);
    assert_eq!(names(&[&at("one")], &[]), ["z/1.jpg"]);
    assert_eq!(names(&[&at("one more.jpg")], &[]), ["one more.jpg"]);

    let usual = Wanted::default();
    touch(at("other/one/2.jpg"));
    let error = Listing::new(&[at("one"), at("other/one")], &[], &usual).err().unwrap();
    assert!(matches!(&error, ListingError::SameName { name, .. } if name == "one"), "{error}");
    let error = Listing::new(&[at("one"), at("three")], &[], &usual).err().unwrap();
    assert!(matches!(&error, ListingError::Root { path, .. } if path.ends_with("three")), "{error}");
    assert!(matches!(Listing::new(&[], &[], &usual), Err(ListingError::NoRoots)));
    assert!(matches!(Listing::new(&["/".into(), at("one")], &[], &usual), Err(ListingError::Nameless { .. })));
}

#[test]
fn what_a_run_writes_is_not_found() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    for name in ["a.jpg", "out.parquet", "out.parquet.tmp-12-0", "out.work/shard-0", "sub/out.parquet", "out.parquet.jpg"] {
        touch(at(name));
    }
    symlink(root.path().join("sub"), at("way")).unwrap();
    let (table, work, not_yet) = (at("out.parquet"), at("out.work"), at("missing/out.parquet"));
    let inside = at("way/out.parquet");
    assert_eq!(names(&[root.path()], &[&table, &work, &not_yet, &inside]), ["a.jpg", "out.parquet.jpg"]);
}

#[test]
fn a_folder_that_cannot_be_listed_is_told() {
    let root = tempfile::tempdir().unwrap();
    let closed = root.path().join("closed");
    touch(closed.join("a.jpg"));
    touch(root.path().join("z.jpg"));
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let found = listed(&[root.path()], &[]);
    let readable_anyway = fs::read_dir(&closed).is_ok();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    if readable_anyway {
        // The superuser reads everything.
        assert_eq!(found[0], ("closed/a.jpg".to_owned(), Kind::File));
    } else {
        let kind = Kind::UnreadableFolder(std::io::ErrorKind::PermissionDenied);
        assert_eq!(found[0], ("closed/".to_owned(), kind));
        assert!(!kind.is_found());
    }
    assert_eq!(found[1].0, "z.jpg");
}

#[test]
fn hidden_files_and_patterns_are_left_out_and_counted() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a.jpg", "._a.jpg", ".cache/b.jpg", "sub/@eaDir/c.jpg", "sub/d.png", "sub/raw/e.jpg", ".f.png"] {
        touch(root.path().join(name));
    }
    let with = |hidden: bool, include: &[&str], exclude: &[&str]| {
        let own = |patterns: &[&str]| patterns.iter().map(|pattern| pattern.to_string()).collect();
        let listing =
            Listing::new(&[root.path().to_path_buf()], &[], &Wanted { hidden, include: own(include), exclude: own(exclude) })
                .unwrap();
        let names: Vec<String> = listing.iter().map(|entry| entry.image_path).collect();
        (names, listing.left_out().hidden, listing.left_out().by_pattern)
    };
    assert_eq!(with(false, &[], &[]), (vec!["a.jpg".into(), "sub/d.png".into(), "sub/raw/e.jpg".into()], 4, 0));
    assert_eq!(with(true, &[], &[]).0.len(), 7);
    assert_eq!(with(false, &["*.jpg"], &[]), (vec!["a.jpg".into(), "sub/raw/e.jpg".into()], 4, 1));
    assert_eq!(with(false, &["*.jpg"], &["raw/"]), (vec!["a.jpg".into()], 4, 2));
    assert_eq!(with(false, &[], &["sub/**"]), (vec!["a.jpg".into()], 4, 2));
    // What is named is looked at, whatever its name.
    assert_eq!(names(&[&root.path().join(".cache")], &[]), ["b.jpg"]);
    assert_eq!(names(&[&root.path().join(".f.png")], &[]), [".f.png"]);
}
