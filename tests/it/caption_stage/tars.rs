//! Tars in the place of folders: the same captions, every member accounted for, and nothing that a hostile tar could gain.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clipcap::dataset::{TarWriter, Wanted};
use clipcap::files::ContentHash;
use clipcap::pipeline::Source;
use clipcap::stages::Outcome;
use clipcap::stages::caption::CaptionReport;
use serde_json::json;

use super::fake::{Fake, caption, errors, manifest, picture, pictures, rows, settings, with};
use super::jobs;
use crate::common::beside;

fn caption_paths(paths: &[PathBuf], out: &Path) -> anyhow::Result<CaptionReport> {
    caption(&with(settings(Path::new("."), out), |run| run.source = Source::Paths(paths.to_vec())), &Fake::new(4))
}

/// Packs with the system's tar, in order of names.
fn pack(folder: &Path, flags: &[&str], tar: &Path) {
    let mut command = Command::new("tar");
    let output = command.args(flags).arg("-cf").arg(tar).arg("--sort=name").arg("-C").arg(folder).arg(".").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// image_path behind the tar's name, and caption.
fn captions(out: &Path, prefix: &str) -> BTreeMap<String, String> {
    rows(out).into_iter().map(|row| (row[1].strip_prefix(prefix).unwrap().to_string() + &row[3], row[4].clone())).collect()
}

#[test]
fn every_format_of_tar_is_captioned_as_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 30);
    picture(&images.join("a b/一只 猫.png"), 100);
    fs::write(images.join("b/0000.txt"), "一只狗").unwrap();
    fs::write(images.join("b/0000.json"), "{}").unwrap();
    fs::write(images.join("empty.jpg"), "").unwrap();
    fs::rename(images.join("a/0004.png"), images.join("a/really.dat")).unwrap();
    let whole = folder.path().join("whole.parquet");
    caption(&settings(&images, &whole), &Fake::new(4)).unwrap();
    // Names beyond 100 bytes are what the formats differ in; v7 has none of them.
    let long = "很长的名字".repeat(12) + ".png";
    for format in ["v7", "ustar", "gnu", "pax"] {
        if format == "gnu" {
            picture(&images.join(&long), 200);
            caption(&settings(&images, &whole), &Fake::new(4)).unwrap();
        }
        for (name, compress) in [("set.tar", None), ("set.tar.gz", Some("-z")), ("set.tgz", Some("-z"))] {
            let tar = folder.path().join(format).join(name);
            fs::create_dir_all(tar.parent().unwrap()).unwrap();
            let flag = format!("--format={format}");
            pack(&images, &[Some(flag.as_str()), compress].into_iter().flatten().collect::<Vec<_>>(), &tar);
            let out = folder.path().join(format).join(format!("{name}.parquet"));
            assert_eq!(caption_paths(&[tar], &out).unwrap().outcome, Outcome::SomeFailed);
            assert_eq!(captions(&out, &format!("{name}/")), captions(&whole, ""), "{format} {name}");
            let counts = &manifest(&beside(&out, "manifest.json"))["counts"];
            assert_eq!(counts, &manifest(&beside(&whole, "manifest.json"))["counts"]);
            assert_eq!(errors(&beside(&out, "errors.parquet")), [(format!("{name}/empty.jpg"), "empty".into())].into());
            let ids: Vec<String> = rows(&out).iter().map(|row| row[0].clone()).collect();
            assert!(ids.contains(&format!("{name}/b/0000")) && ids.contains(&format!("{name}/a/really.dat")), "{ids:?}");
        }
    }
}

#[test]
fn a_pattern_of_tars_is_a_list_and_a_job_over_them_is_the_single_run() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for set in 0..3_u32 {
        let images = root.join(format!("images-{set}"));
        for i in 0..70 {
            picture(&images.join(format!("{i:04}.png")), set * 70 + i);
        }
        fs::write(images.join("0003.json"), "{}").unwrap();
        pack(&images, &["--format=ustar"], &root.join(format!("set-{set:03}.tar")));
    }
    pictures(&root.join("photos"), 5);
    let inputs = [root.join("set-{000..002}.tar"), root.join("photos")];
    let out = root.join("single/t.parquet");
    caption_paths(&inputs, &out).unwrap();
    let counts = json!({"found": 218, "captioned": 215, "failed": 0, "skipped": 3});
    assert_eq!(manifest(&out.with_file_name(".clipcap/t.manifest.json"))["counts"], counts);
    let paths: Vec<String> = rows(&out).into_iter().map(|row| row[1].clone()).collect();
    assert_eq!((paths[0].as_str(), paths[10].as_str()), ("photos/a/0001.png", "set-000.tar/0000.png"));
    let merged = root.join("merged/t.parquet");
    let planned = jobs::whole_job(&inputs, &root.join("job"), 3, &merged);
    // Two of the folder's files, and a shard for each tar.
    assert_eq!((planned.num_shards, planned.counts.found), (5, 218));
    assert!(fs::read(&out).unwrap() == fs::read(&merged).unwrap());
    assert!(!beside(&out, "errors.parquet").exists() && !beside(&merged, "errors.parquet").exists());
    let missing = caption_paths(&[root.join("set-{000..003}.tar")], &out).unwrap_err();
    assert!(missing.to_string().contains("set-003.tar"), "{missing}");
}

/// Cut where a member ends, a tar looks whole but for the empty blocks at its end.
#[test]
fn a_tar_without_its_end_is_told() {
    let folder = tempfile::tempdir().unwrap();
    picture(&folder.path().join("good.png"), 1);
    let good = fs::read(folder.path().join("good.png")).unwrap();
    let mut writer = TarWriter::new(Vec::new());
    ["a.png", "b.png"].iter().for_each(|name| writer.add(name.as_bytes(), &good).unwrap());
    let whole = writer.finish().unwrap();
    let gzipped = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let members = whole.len() - 1024;
    let mut damaged = gzipped(&whole);
    let sum = damaged.len() - 8;
    damaged[sum] ^= 1;
    let tars: [(&str, Vec<u8>, u64, Option<&str>); 8] = [
        ("whole.tar", whole.clone(), 2, None),
        ("one_block.tar", whole[..members + 512].to_vec(), 2, None),
        ("cut.tar", whole[..members].to_vec(), 2, Some("truncated")),
        ("half.tar", whole[..members / 2].to_vec(), 1, Some("truncated")),
        ("empty.tar", Vec::new(), 0, Some("truncated")),
        ("whole.tar.gz", gzipped(&whole), 2, None),
        ("cut.tar.gz", gzipped(&whole[..members]), 2, Some("truncated")),
        ("damaged.tar.gz", damaged, 2, Some("corrupt")),
    ];
    for (name, bytes, captioned, told) in tars {
        let root = folder.path().join(format!("of {name}"));
        fs::create_dir(&root).unwrap();
        fs::write(root.join(name), bytes).unwrap();
        // Something is captioned in any case.
        fs::write(root.join("good.png"), &good).unwrap();
        let out = root.join("out.parquet");
        let report = caption_paths(&[root.join(name), root.join("good.png")], &out).unwrap();
        assert_eq!(report.report.counts.succeeded, captioned + 1, "{name}");
        match told {
            None => assert!(!beside(&out, "errors.parquet").exists(), "{name}"),
            Some(reason) => assert_eq!(errors(&beside(&out, "errors.parquet"))[&format!("{name}/")], reason),
        }
    }
}

#[test]
fn hostile_members_are_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    picture(&images.join("good.png"), 1);
    let good = fs::read(images.join("good.png")).unwrap();
    let mut writer = TarWriter::new(Vec::new());
    for name in ["good.png", "../escape.png", "/etc/absolute.png", "a/../../b.png", "same.png", "same.jpg", "notes/../../x.txt"] {
        writer.add(name.as_bytes(), &good).unwrap();
    }
    let mut tar = writer.finish().unwrap();
    // What follows is more of it, without the blocks that end a tar.
    tar.truncate(tar.len() - 1024);
    // Links, a sparse file and a pipe from the system's tar.
    let odd = folder.path().join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("z.png"), &good).unwrap();
    fs::hard_link(odd.join("z.png"), odd.join("hard.png")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", odd.join("link.png")).unwrap();
    std::os::unix::fs::symlink("/etc", odd.join("folder")).unwrap();
    assert!(Command::new("mkfifo").arg(odd.join("pipe.png")).status().unwrap().success());
    fs::File::create(odd.join("holes.png")).unwrap().set_len(1 << 32).unwrap();
    let packed = folder.path().join("odd.tar");
    pack(&odd, &["--format=gnu", "-S"], &packed);
    tar.extend(fs::read(&packed).unwrap());
    let hostile = folder.path().join("hostile.tar");
    fs::write(&hostile, &tar).unwrap();
    let out = folder.path().join("out.parquet");
    let report = caption_paths(std::slice::from_ref(&hostile), &out).unwrap();
    assert_eq!(report.report.counts.succeeded, 4, "good, same twice, and one of the two names of a file");
    let told = errors(&folder.path().join(".clipcap/out.errors.parquet"));
    let reason = |name: &str| told.get(&format!("hostile.tar/{name}")).map(String::as_str);
    for name in ["../escape.png", "/etc/absolute.png", "a/../../b.png", "link.png", "pipe.png", "holes.png"] {
        assert_eq!(reason(name), Some("unreadable"), "{name} in {told:?}");
    }
    assert!(reason("z.png").is_some() != reason("hard.png").is_some(), "{told:?}");
    let ids: Vec<String> = rows(&out).into_iter().step_by(2).map(|row| row[0].clone()).collect();
    assert!(ids.contains(&"hostile.tar/same".into()) && ids.contains(&"hostile.tar/same.jpg".into()), "{ids:?}");
    assert_eq!(report.report.counts.skipped, 2, "notes and a link called folder");

    // Cut anywhere, damaged, or claiming a terabyte: what is before it is captioned, and the rest is told.
    let mut two = TarWriter::new(Vec::new());
    picture(&images.join("second.png"), 2);
    two.add(b"first.png", &good).unwrap();
    two.add(b"second.png", &fs::read(images.join("second.png")).unwrap()).unwrap();
    let two = two.finish().unwrap();
    let second = 512 + good.len().next_multiple_of(512);
    let fails = |bytes: &[u8], captioned: u64, reasons: &[(&str, &str)]| {
        fs::write(&hostile, bytes).unwrap();
        let out = folder.path().join(format!("{}-{}/out.parquet", bytes.len(), ContentHash::of(bytes)));
        let settings = with(settings(Path::new("."), &out), |run| {
            run.source = Source::Paths(vec![hostile.clone()]);
            run.reading.limits.max_bytes = 1 << 20;
        });
        let report = caption(&settings, &Fake::new(4)).unwrap();
        let wanted = reasons.iter().map(|(name, reason)| (format!("hostile.tar/{name}"), (*reason).to_string())).collect();
        assert_eq!(
            (report.report.counts.succeeded, errors(&out.with_file_name(".clipcap/out.errors.parquet"))),
            (captioned, wanted)
        );
    };
    fails(&two[..second + 512 + 40], 1, &[("second.png", "truncated"), ("", "truncated")]);
    fails(&two[..second + 100], 1, &[("", "truncated")]);
    fails(&two[..second], 1, &[("", "truncated")]);
    let mut damaged = two.clone();
    damaged[second + 3] ^= 1;
    fails(&damaged, 1, &[("", "corrupt")]);
    let mut huge = two.clone();
    huge[second + 124..second + 136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    let sum: u32 = huge[second..second + 512]
        .iter()
        .enumerate()
        .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
        .sum();
    huge[second + 148..second + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    fails(&huge, 1, &[("second.png", "too_large"), ("", "truncated")]);
}

#[test]
fn a_tar_that_is_none_is_told_and_hides_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (photos, bad, gone) = (folder.path().join("photos"), folder.path().join("bad.tar"), folder.path().join("bad.tar.gz"));
    pictures(&photos, 3);
    fs::write(&bad, "this is no tar".repeat(100)).unwrap();
    fs::write(&gone, [0x1F, 0x8B, 8, 0, 1, 2, 3]).unwrap();
    let out = folder.path().join("out.parquet");
    let report = caption_paths(&[photos, bad, gone], &out).unwrap();
    assert_eq!((report.outcome, report.report.counts.succeeded, report.report.counts.unlisted), (Outcome::SomeFailed, 3, 2));
    let told = errors(&folder.path().join(".clipcap/out.errors.parquet"));
    assert_eq!(told["bad.tar/"], "corrupt");
    assert_eq!(told["bad.tar.gz/"], "truncated");
}

#[test]
fn parquet_files_with_a_column_of_images_are_captioned_as_their_folder() {
    use arrow::array::{ArrayRef, BinaryArray, LargeBinaryArray, StringArray, StructArray};
    use arrow::datatypes::{DataType, Field};
    use arrow::record_batch::RecordBatch;
    use clipcap::table::ParquetSink;
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    for i in 0..40 {
        picture(&images.join(format!("{i:04}.png")), i);
    }
    let whole = folder.path().join("whole.parquet");
    caption(&settings(&images, &whole), &Fake::new(4)).unwrap();
    let wanted: Vec<String> = rows(&whole).into_iter().map(|row| row[4].clone()).collect();
    let bytes = |i: u32| fs::read(images.join(format!("{i:04}.png"))).unwrap();
    let write = |name: &str, column: ArrayRef| {
        let path = folder.path().join(name);
        let batch = RecordBatch::try_from_iter([("picture", column)]).unwrap();
        let mut sink = ParquetSink::create(&path, batch.schema(), "images/1").unwrap();
        sink.write(&batch).unwrap();
        sink.finish().unwrap();
        path
    };
    let all: Vec<Vec<u8>> = (0..40).map(bytes).collect();
    let names: StringArray = (0..40).map(|i| (i != 7).then(|| format!("{i:04}.png"))).collect();
    let parts: Vec<(std::sync::Arc<Field>, ArrayRef)> = vec![
        (Field::new("bytes", DataType::Binary, true).into(), std::sync::Arc::new(BinaryArray::from_iter_values(&all))),
        (Field::new("path", DataType::Utf8, true).into(), std::sync::Arc::new(names)),
    ];
    let hugging_face = write("hf.parquet", std::sync::Arc::new(StructArray::from(parts)));
    let plain = write("plain.parquet", std::sync::Arc::new(LargeBinaryArray::from_iter_values(&all)));
    for (file, first, eighth) in
        [(&hugging_face, "0000.png", "hf.parquet/00000007"), (&plain, "plain.parquet/00000000", "plain.parquet/00000007")]
    {
        let out = file.with_extension("captions.parquet");
        let source = Source::Parquet(vec![file.clone()], "picture".into());
        let report = caption(&with(settings(&images, &out), |run| run.source = source), &Fake::new(4)).unwrap();
        assert_eq!(report.outcome, Outcome::Complete);
        let rows = rows(&out);
        assert_eq!(rows.iter().map(|row| row[4].clone()).collect::<Vec<_>>(), wanted);
        assert_eq!((rows[0][1].as_str(), rows[14][1].as_str()), (first, eighth));
    }
    let source = Source::Parquet(vec![plain], "image".into());
    let error = caption(&with(settings(&images, &folder.path().join("none.parquet")), |run| run.source = source), &Fake::new(4));
    assert!(error.unwrap_err().to_string().contains("it has picture (--image-column"));
}

/// What a Mac puts beside each file, and what patterns leave out, in a tar as in the folder it was made of.
#[test]
fn hidden_and_unwanted_members_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 6);
    for name in ["a/._0001.png", ".hidden/x.png", "@eaDir/y.png", "b/raw/z.png"] {
        picture(&images.join(name), 300);
    }
    let (tar, out) = (folder.path().join("set.tar"), folder.path().join("t.parquet"));
    pack(&images, &["--format=ustar"], &tar);
    let with = |wanted: Wanted, source: &Path| {
        let settings = with(settings(Path::new("."), &out), |run| {
            run.source = Source::Paths(vec![source.into()]);
            run.wanted = wanted;
            run.overwrite = true;
            run.prune = true;
        });
        let report = caption(&settings, &Fake::new(4)).unwrap();
        (report.report.counts.found(), report.left_out)
    };
    let exclude = || Wanted { exclude: vec!["raw/".into()], ..Wanted::default() };
    let (found, left_out) = with(Wanted::default(), &tar);
    assert_eq!((found, left_out.hidden, left_out.by_pattern), (7, 3, 0));
    assert_eq!(with(exclude(), &tar).0, 6);
    assert_eq!(with(Wanted { hidden: true, ..Wanted::default() }, &tar).0, 10);
    for wanted in [Wanted::default(), exclude()] {
        assert_eq!(with(wanted.clone(), &images).0, with(wanted, &tar).0);
    }
    // A job counts and captions the same members.
    let planned = jobs::whole_job(&[tar], &folder.path().join("job"), 100, &folder.path().join("merged.parquet"));
    assert_eq!(planned.counts.found, 7);
}
