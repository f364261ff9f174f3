//! Buckets in the place of folders: the same bytes, everything accounted for whatever the server does, and no secret in any output.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::proxy::{Proxy, S3Fs};
use crate::common::s3::{Fault, S3, SECRET, environment};
use crate::common::{beside, clipcap, columns, run, scenes, tiny_bundle};

pub struct World {
    pub folder: tempfile::TempDir,
    pub s3: S3,
    pub bundle: PathBuf,
    /// Pictures in folders, files that fail and files that are none.
    pub photos: PathBuf,
}

impl World {
    pub fn new(pictures: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (bundle, photos) = (tiny_bundle(folder.path()), scenes(folder.path(), pictures));
        for (number, entry) in fs::read_dir(&photos).unwrap().flatten().enumerate().collect::<Vec<_>>() {
            // Names whose order differs part by part and byte by byte.
            let to = photos.join(["a", "a-b", "a/一只 猫", "c&<d>"][number % 4]);
            fs::create_dir_all(&to).unwrap();
            fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
        }
        fs::write(photos.join("a/bad.jpg"), "bad").unwrap();
        fs::write(photos.join("a/empty.png"), "").unwrap();
        fs::write(photos.join("notes"), "notes").unwrap();
        fs::write(photos.join(".hidden.jpg"), "hidden").unwrap();
        let s3 = S3::start();
        s3.put_folder(&photos, "photos");
        // What some tools make for a folder.
        s3.put("photos/", Vec::new());
        Self { folder, s3, bundle, photos }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = clipcap();
        let (name, words) = words.split_first().unwrap();
        command.arg(name).args(["--quiet", "--model"]).arg(&self.bundle).args(words);
        self.s3.environment(&mut command);
        command
    }

    pub fn caption(&self, paths: &[PathBuf], out: &str, status: i32) -> Output {
        let mut command = self.command(&["caption"]);
        let output = run(command.args(paths).args(["--max-new-tokens", "4", "--out"]).arg(self.at(out)), status);
        assert!(!String::from_utf8_lossy(&output.stderr).contains(SECRET));
        output
    }
}

/// Tables and errors of an output's folder.
pub fn tables(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        match path.is_dir() {
            true => all.extend(tables(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes))),
            false => drop(all.insert(name, fs::read(path).unwrap())),
        }
    }
    for (name, bytes) in &all {
        assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{name} holds a secret");
    }
    all.into_iter().filter(|(name, _)| !name.ends_with("manifest.json")).collect()
}

pub fn pack(folder: &Path, flags: &[&str], tar: &Path) {
    let mut command = Command::new("tar");
    run(command.args(flags).arg("-cf").arg(tar).args(["--sort=name", "--mtime=@0", "-C"]).arg(folder).arg("."), 0);
}

#[test]
fn folder_tar_parquet_and_bucket_have_the_same_captions() {
    let world = World::new(14);
    world.caption(std::slice::from_ref(&world.photos), "local/t.parquet", 3);
    let wanted = tables(&world.at("local"));
    world.caption(&["s3://bucket/photos".into()], "remote/t.parquet", 3);
    assert!(tables(&world.at("remote")) == wanted, "a bucket's captions are others than a folder's");
    let manifest = fs::read_to_string(beside(&world.at("remote/t.parquet"), "manifest.json")).unwrap();
    assert!(manifest.contains("s3://bucket/photos"), "{manifest}");
    // Given again, nothing is computed.
    let mut again = world.command(&["caption", "s3://bucket/photos", "--json", "--max-new-tokens", "4", "--out"]);
    let told: serde_json::Value = serde_json::from_slice(&run(again.arg(world.at("remote/t.parquet")), 3).stdout).unwrap();
    assert_eq!(told["computed"], 0, "{told}");
    // An object that was changed is noticed, as a changed file is, and changed back it is the old table.
    let key = world.s3.keys().into_iter().find(|key| key.contains("scene")).unwrap();
    let before = world.s3.get(&key).unwrap();
    let mut other = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(70, 70, image::Rgb([9, 99, 199])).write_to(&mut other, image::ImageFormat::Png).unwrap();
    for (bytes, is_old) in [(other.into_inner(), false), (before, true)] {
        world.s3.put(&key, bytes);
        let told: serde_json::Value = serde_json::from_slice(&run(&mut again, 3).stdout).unwrap();
        assert_eq!(told["computed"], 1, "{told}");
        assert_eq!(tables(&world.at("remote")) == wanted, is_old);
    }

    // Tars, plain and gzipped, of more than a part; and Parquet.
    fs::write(world.photos.join("filler.bin"), vec![7; 9 << 20]).unwrap();
    for (name, flags) in [("set.tar", &[][..]), ("set.tar.gz", &["-z"])] {
        pack(&world.photos, flags, &world.at(name));
        world.s3.put(name, fs::read(world.at(name)).unwrap());
        world.caption(&[world.at(name)], &format!("{name}-local/t.parquet"), 3);
        world.caption(&[format!("s3://bucket/{name}").into()], &format!("{name}-remote/t.parquet"), 3);
        assert!(tables(&world.at(&format!("{name}-local"))) == tables(&world.at(&format!("{name}-remote"))), "{name}");
    }
    let mut export = clipcap();
    export.arg("export").arg(world.at("local/t.parquet")).args(["--quiet", "--to", "parquet", "--images"]).arg(&world.photos);
    run(export.arg("--out").arg(world.at("parquet")), 0);
    let file = world.at("parquet/train-00000.parquet");
    world.s3.put("train-00000.parquet", fs::read(&file).unwrap());
    world.caption(&[file], "p-local/t.parquet", 0);
    world.caption(&["s3://bucket/train-00000.parquet".into()], "p-remote/t.parquet", 0);
    assert!(tables(&world.at("p-local")) == tables(&world.at("p-remote")));
    let captions = |out: &str| {
        let mut rows = columns(&world.at(out), &["image_id", "sha256", "caption"]);
        rows.iter_mut().for_each(|row| row[0] = row[0].trim_start_matches("set.tar/").to_string());
        rows.sort();
        rows
    };
    assert_eq!(captions("p-remote/t.parquet"), captions("remote/t.parquet"));
    assert_eq!(captions("set.tar-remote/t.parquet"), captions("remote/t.parquet"));
}

#[test]
fn requests_that_fail_are_tried_again_and_what_stays_unreachable_is_told() {
    let world = World::new(30);
    world.caption(std::slice::from_ref(&world.photos), "local/t.parquet", 3);
    let wanted = tables(&world.at("local"));
    // Every tenth request meets something.
    world.s3.fail(|number, _, _| match number % 30 {
        3 => Fault::Status(503),
        13 => Fault::Cut,
        23 => Fault::Slow(300),
        _ => Fault::None,
    });
    world.caption(&["s3://bucket/photos/".into()], "faults/t.parquet", 3);
    assert!(tables(&world.at("faults")) == wanted, "faults changed the captions");
    // What never answers is told, and the rest is there.
    let is_picture = |key: &String| key.starts_with("photos/") && key.contains("scene") && !key.contains("bad");
    let lost = world.s3.keys().into_iter().filter(is_picture).nth(2).unwrap();
    let gone = lost.clone();
    world.s3.fail(move |_, _, key| if key == gone { Fault::Status(503) } else { Fault::None });
    let mut one_try = world.command(&["caption", "s3://bucket/photos", "--max-new-tokens", "4", "--out"]);
    run(one_try.env("CLIPCAP_REMOTE_TRIES", "2").arg(world.at("lost/t.parquet")), 3);
    let errors = columns(&beside(&world.at("lost/t.parquet"), "errors.parquet"), &["image_path", "reason", "message"]);
    let told: Vec<_> = errors.iter().filter(|row| row[1] == "unreachable").collect();
    assert_eq!(told.len(), 1, "{errors:?}");
    assert_eq!(format!("photos/{}", told[0][0]), lost);
    assert!(told[0][2].contains("503") && told[0][2].contains("2 tries"), "{told:?}");
    assert_eq!(errors.len(), 3);
    // The same command again, when it answers.
    world.s3.fail(|_, _, _| Fault::None);
    world.caption(&["s3://bucket/photos".into()], "lost/t.parquet", 3);
    assert!(tables(&world.at("lost")) == wanted);
    // A server that is gone altogether, a bucket without such a prefix, and a path that is a URL of nothing.
    world.s3.fail(|_, _, _| Fault::Status(403));
    let told = world.caption(&["s3://bucket/photos".into()], "x/t.parquet", 1);
    assert!(String::from_utf8_lossy(&told.stderr).contains("refuses"), "{told:?}");
    world.s3.fail(|_, _, _| Fault::None);
    let told = world.caption(&["s3://bucket/nothing".into()], "x/t.parquet", 1);
    assert!(String::from_utf8_lossy(&told.stderr).contains("s3://bucket/nothing"), "{told:?}");
    let mut dead = world.command(&["caption", "s3://bucket/photos", "--out"]);
    let told =
        run(dead.env("AWS_ENDPOINT", "http://127.0.0.1:9").env("CLIPCAP_REMOTE_TRIES", "1").arg(world.at("x/t.parquet")), 1);
    assert!(String::from_utf8_lossy(&told.stderr).contains("no answer"), "{told:?}");
}

/// What cannot be named is told, and what lies beside it is captioned.
#[test]
fn keys_with_empty_parts_are_told() {
    let world = World::new(8);
    world.caption(std::slice::from_ref(&world.photos), "local/t.parquet", 3);
    for key in ["photos//1.jpg", "photos/a//deep/2.jpg", "photos/a/./3.jpg", "photos/c&<d>/line\nbreak.jpg", "/4.jpg"] {
        world.s3.put(key, b"a picture".to_vec());
    }
    let errors = |out: &str| columns(&beside(&world.at(out), "errors.parquet"), &["image_path", "reason", "message"]);
    world.caption(&["s3://bucket/photos/".into()], "remote/t.parquet", 3);
    assert!(fs::read(world.at("remote/t.parquet")).unwrap() == fs::read(world.at("local/t.parquet")).unwrap());
    let known = errors("local/t.parquet");
    let told: Vec<_> = errors("remote/t.parquet").into_iter().filter(|row| !known.contains(row)).collect();
    assert!(told.iter().all(|row| row[1] == "unreadable" && row[2].contains("rename")), "{told:?}");
    let paths: Vec<&str> = told.iter().map(|row| row[0].trim_end_matches('/')).collect();
    let unnamed = |part: &str| format!("(cannot be named: {part})");
    let wanted = [
        unnamed("empty"),
        format!("a/{}", unnamed(".")),
        format!("a/{}", unnamed("empty")),
        format!("c&<d>/{}", unnamed("line?break.jpg")),
    ];
    assert_eq!(paths, wanted);
    // The bucket as a whole has one that begins with a slash; and a list of URLs may name one.
    world.caption(&["s3://bucket".into()], "whole/t.parquet", 3);
    assert!(errors("whole/t.parquet").iter().any(|row| row[0].trim_end_matches('/') == unnamed("empty")));
    let list = world.at("list.txt");
    fs::write(&list, "s3://bucket/photos//1.jpg\n").unwrap();
    let mut command = world.command(&["caption", "--urls"]);
    let output = run(command.arg(&list).arg("--out").arg(world.at("urls/t.parquet")).arg("s3://bucket/photos/a-b"), 3);
    assert!(output.status.code() == Some(3));
    let told = errors("urls/t.parquet");
    assert!(told.len() == 1 && told[0][1] == "unreadable" && told[0][2].contains("rename"), "{told:?}");
}

/// More requests than 32 wait for a server that is far away, never more than 128, and fewer where few files may be open.
#[test]
fn many_readers_wait_for_a_server_and_few_where_few_files_may_be_open() {
    let world = World::new(200);
    world.caption(std::slice::from_ref(&world.photos), "local/t.parquet", 3);
    let wanted = tables(&world.at("local"));
    for (files, most) in [(1024, 128), (64, 16)] {
        let (late, peak) = (Duration::from_millis(500), Arc::new(AtomicUsize::new(0)));
        let (begun, seen) = (Mutex::new(Vec::<Instant>::new()), peak.clone());
        world.s3.fail(move |_, method, key| {
            if method != "GET" || !key.contains("scene") {
                return Fault::None;
            }
            let mut begun = begun.lock().unwrap();
            begun.retain(|begun| begun.elapsed() < late);
            begun.push(Instant::now());
            seen.fetch_max(begun.len(), Ordering::SeqCst);
            Fault::Slow(500)
        });
        let out = format!("files-{files}/t.parquet");
        let plain = world.command(&["caption", "s3://bucket/photos/", "--max-new-tokens", "4", "--out"]);
        let mut limited = Command::new("sh");
        limited.arg("-c").arg(format!("ulimit -n {files} && exec \"$0\" \"$@\"")).arg(plain.get_program()).args(plain.get_args());
        limited.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).arg(world.at(&out));
        run(&mut limited, 3);
        assert!(tables(&world.at(&format!("files-{files}"))) == wanted, "other bytes");
        let peak = peak.load(Ordering::SeqCst);
        assert!(peak <= most && peak > most / 2, "{peak} requests at once with {files} files");
    }
}

#[test]
fn a_tar_that_breaks_off_on_the_way_is_told_and_never_taken_for_whole() {
    let world = World::new(14);
    fs::write(world.photos.join("a/filler.bin"), vec![7; 9 << 20]).unwrap();
    pack(&world.photos, &[], &world.at("set.tar"));
    world.s3.put("set.tar", fs::read(world.at("set.tar")).unwrap());
    world.s3.fail(|_, _, key| if key.contains('@') && !key.ends_with("@0") { Fault::Status(500) } else { Fault::None });
    let mut command = world.command(&["caption", "s3://bucket/set.tar", "--max-new-tokens", "4", "--out"]);
    run(command.env("CLIPCAP_REMOTE_TRIES", "2").arg(world.at("out/t.parquet")), 3);
    let errors = columns(&beside(&world.at("out/t.parquet"), "errors.parquet"), &["image_path", "reason"]);
    assert!(errors.iter().any(|row| row[0] == "set.tar/" && row[1] == "unreachable"), "{errors:?}");
}

#[test]
fn lists_of_urls_are_captioned_and_embedded_in_their_order() {
    let world = World::new(8);
    let keys: Vec<String> = world.s3.keys().into_iter().filter(|key| key.ends_with(".jpg") || key.ends_with(".png")).collect();
    let encoded = |key: &str| {
        percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC).to_string().replace("%2F", "/")
    };
    let mut lines = String::from("# photos\n");
    for (number, key) in keys.iter().rev().enumerate() {
        lines += &match number % 2 {
            0 => format!("s3://bucket/{key}\n"),
            _ => format!("http://127.0.0.1:{}/bucket/{}?signature={SECRET}\n", world.s3.port, encoded(key)),
        };
    }
    lines += "s3://bucket/photos/gone.jpg\n";
    let list = world.at("urls.txt");
    fs::write(&list, &lines).unwrap();
    let mut caption = world.command(&["caption", "--max-new-tokens", "4", "--urls"]);
    run(caption.arg(&list).arg("--out").arg(world.at("out/t.parquet")), 3);
    let paths: Vec<String> = columns(&world.at("out/t.parquet"), &["image_path"]).concat();
    let host = format!("127.0.0.1:{}/bucket", world.s3.port);
    assert!(paths.iter().all(|path| path.starts_with("bucket/photos/") || path.starts_with(&host)), "{paths:?}");
    assert_eq!(paths.len(), 8);
    let reasons: BTreeMap<_, _> = columns(&beside(&world.at("out/t.parquet"), "errors.parquet"), &["image_path", "reason"])
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    assert_eq!(reasons["bucket/photos/gone.jpg"], "vanished");
    tables(&world.at("out"));
    let mut embed = world.command(&["embed", "--urls"]);
    run(embed.arg(&list).arg("--out").arg(world.at("embeddings")), 3);
    assert_eq!(columns(&world.at("embeddings/part-00000.parquet"), &["image_path"]).concat(), paths);
    fs::write(&list, "photos/a.jpg\n").unwrap();
    let mut wrong = world.command(&["caption", "--urls"]);
    let told = run(wrong.arg(&list).arg("--out").arg(world.at("x.parquet")), 1);
    assert!(String::from_utf8_lossy(&told.stderr).contains("line 1"), "{told:?}");
}

#[test]
fn a_job_over_a_bucket_is_the_single_run() {
    let world = World::new(14);
    fs::remove_dir_all(world.photos.join("a-b")).unwrap();
    pack(&world.photos, &[], &world.at("set.tar"));
    world.s3.put("set.tar", fs::read(world.at("set.tar")).unwrap());
    let inputs = ["s3://bucket/photos", "s3://bucket/set.tar"];
    world.caption(&inputs.map(PathBuf::from), "single/t.parquet", 3);
    let job = world.at("job");
    let mut plan = world.command(&["plan", "--shard-size", "5", "--max-new-tokens", "4", "--job"]);
    run(plan.arg(&job).args(inputs), 0);
    world.s3.fail(|number, _, _| if number % 10 == 3 { Fault::Status(503) } else { Fault::None });
    // What a tar there holds is known once it was read.
    let status = || String::from_utf8(run(clipcap().args(["job", "status"]).arg(&job), 0).stdout).unwrap();
    let before = status();
    assert!(before.contains("0 of 17 files and of what 1 tar holds"), "{before}");
    for shards in [&["--shard", "1"][..], &["--next=all"]] {
        let mut worker = clipcap();
        world.s3.environment(&mut worker);
        run(worker.args(["caption", "--quiet", "--job"]).arg(&job).args(shards), 0);
    }
    let after = status();
    assert!(after.contains("5 of 5 shards, 30 of 30 files\n"), "{after}");
    run(clipcap().args(["merge", "--quiet"]).arg(&job).arg("--out").arg(world.at("merged/t.parquet")), 3);
    assert!(tables(&world.at("merged")) == tables(&world.at("single")));
}

#[test]
fn a_dataset_is_prepared_from_a_bucket() {
    let world = World::new(8);
    let name = |path: &Path| path.strip_prefix(&world.photos).unwrap().to_str().unwrap().to_string();
    let mut lines = String::new();
    for folder in ["a", "a-b", "c&<d>"] {
        for entry in fs::read_dir(world.photos.join(folder)).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            lines += &format!("{}\t一只狗\n", name(&entry.path()));
        }
    }
    fs::write(world.at("c.tsv"), lines).unwrap();
    let prepare = |images: &Path, out: &str| {
        let mut command = clipcap();
        world.s3.environment(&mut command);
        command.args(["prepare", "--quiet", "--captions"]).arg(world.at("c.tsv")).arg("--images").arg(images);
        run(command.arg("--out").arg(world.at(out)), 3);
        ["captions.parquet", "images.parquet"].map(|table| fs::read(world.at(out).join(table)).unwrap())
    };
    assert!(prepare(&world.photos, "local") == prepare(Path::new("s3://bucket/photos"), "remote"));
    // And embedded from there.
    let embed = |images: &str, dataset: &str, out: &str| {
        let mut command = world.command(&["embed", "--dataset"]);
        run(command.arg(world.at(dataset)).args(["--images", images, "--out"]).arg(world.at(out)), 3);
        tables(&world.at(out))
    };
    assert!(embed(world.photos.to_str().unwrap(), "local", "e-local") == embed("s3://bucket/photos", "remote", "e-remote"));
}

#[test]
fn outputs_in_a_bucket_are_complete_or_absent_and_gone_on_from() {
    let world = World::new(6);
    // Noise beyond one part of an upload.
    let mut state = 1_u32;
    let noise = image::RgbImage::from_fn(1800, 1800, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        image::Rgb([(state >> 24) as u8, (state >> 16) as u8, (state >> 8) as u8])
    });
    noise.save(world.photos.join("a/noise.png")).unwrap();
    let command = |words: &[&str], cache: &str| {
        let mut command = world.command(words);
        command.env("XDG_CACHE_HOME", world.at(cache));
        command
    };
    let caption = |out: &str, cache: &str, flags: &[&str], status: i32| -> serde_json::Value {
        let mut command = command(&["caption", "--json", "--out", out], cache);
        serde_json::from_slice(&run(command.arg(&world.photos).args(flags), status).stdout).unwrap_or_default()
    };
    let (url, flags) = ("s3://bucket/out/t.parquet", ["--max-new-tokens", "4"]);
    world.caption(std::slice::from_ref(&world.photos), "local/t.parquet", 3);
    // Nothing can be written: nothing is there, and what was made is kept.
    world.s3.fail(|_, method, _| if method == "PUT" { Fault::Status(500) } else { Fault::None });
    caption(url, "cache", &flags, 1);
    assert!(!world.s3.keys().iter().any(|key| key.starts_with("out/")), "{:?}", world.s3.keys());
    world.s3.fail(|number, _, _| if number % 5 == 1 { Fault::Status(503) } else { Fault::None });
    let told = caption(url, "cache", &flags, 3);
    assert_eq!((&told["computed"], &told["out"]), (&0.into(), &url.into()), "{told}");
    for (there, here) in
        [("out/t.parquet", "local/t.parquet"), ("out/.clipcap/t.errors.parquet", "local/.clipcap/t.errors.parquet")]
    {
        assert!(world.s3.get(there).unwrap() == fs::read(world.at(here)).unwrap(), "{there}");
    }
    assert!(world.s3.get("out/.clipcap/t.manifest.json").is_some());
    let mut plain = clipcap();
    world.s3.environment(plain.env("XDG_CACHE_HOME", world.at("cache")));
    plain.arg("caption").arg(&world.photos).args(flags).arg("--model").arg(&world.bundle).args(["--out", url]);
    let plain = String::from_utf8(run(&mut plain, 3).stdout).unwrap();
    assert!(plain.contains(&format!("output   {url}\n")), "{plain}");
    // On another machine, that has no copy: gone on from, and other settings are refused.
    let told = caption(url, "other", &flags, 3);
    assert_eq!(told["computed"], 0, "{told}");
    caption(url, "third", &["--max-new-tokens", "5"], 1);
    world.s3.put("out/mine.parquet", b"mine".to_vec());
    caption("s3://bucket/out/mine.parquet", "cache", &flags, 1);
    assert_eq!(world.s3.get("out/mine.parquet").unwrap(), b"mine");
    // Folders, and files of several parts.
    let embed = |out: &str, status: i32| {
        let mut command = command(&["embed", "--save-images", "--out", out, "--images"], "cache");
        run(command.arg(&world.photos), status)
    };
    embed(world.at("e").to_str().unwrap(), 3);
    world.s3.fail(|_, method, key| if method == "POST" && key.contains("images-") { Fault::Status(500) } else { Fault::None });
    embed("s3://bucket/e/", 1);
    assert_eq!(world.s3.get(".clipcap/e.manifest.json"), None);
    world.s3.fail(|_, _, _| Fault::None);
    world.s3.put("e/part-00007.parquet", b"of an earlier, larger run".to_vec());
    embed("s3://bucket/e/", 3);
    for name in ["e/part-00000.parquet", "e/images-00000.parquet", ".clipcap/e.errors.parquet"] {
        assert!(world.s3.get(name).unwrap() == fs::read(world.at(name)).unwrap(), "{name}");
    }
    assert!(world.s3.get("e/part-00007.parquet").is_none() && world.s3.get(".clipcap/e.manifest.json").is_some());
    assert_eq!(world.s3.uploads(), 0);
}

#[test]
fn a_server_of_others_on_a_bad_line_gives_the_same_bytes() {
    let world = World::new(30);
    let store = world.at("store");
    fs::create_dir_all(&store).unwrap();
    let Some(server) = S3Fs::start(&store) else { return };
    fs::create_dir(store.join("bucket")).unwrap();
    run(Command::new("cp").arg("-r").arg(&world.photos).arg(store.join("bucket/photos")), 0);
    let mut filled = world.at("filled");
    run(Command::new("cp").arg("-r").arg(&world.photos).arg(&filled), 0);
    fs::write(filled.join("filler.bin"), vec![7; 9 << 20]).unwrap();
    pack(&filled, &["-z"], &store.join("bucket/set.tar.gz"));
    filled = world.at("set.tar.gz");
    fs::copy(store.join("bucket/set.tar.gz"), &filled).unwrap();
    world.caption(std::slice::from_ref(&world.photos), "local/t.parquet", 3);
    world.caption(&[filled], "local-tar/t.parquet", 3);
    // Every request is late, and each tenth meets worse.
    let proxy = Proxy::start(server.port, |number| match number % 40 {
        3 => Fault::Status(503),
        13 => Fault::Cut,
        23 => Fault::Drops(20),
        33 => Fault::Status(500),
        _ => Fault::Slow(10),
    });
    let there = |command: &mut Command| environment(proxy.port, command);
    let caption = |input: &str, out: &str| {
        let mut command = world.command(&["caption", "--json", "--max-new-tokens", "4", "--out", out, input]);
        there(command.env("XDG_CACHE_HOME", world.at("cache")));
        serde_json::from_slice::<serde_json::Value>(&run(&mut command, 3).stdout).unwrap()
    };
    // It has folders, and no answer to whether one is an object: the slash says that it is none.
    let at = |name: &str| world.at(name).to_str().unwrap().to_string();
    caption("s3://bucket/photos/", &at("remote/t.parquet"));
    assert!(tables(&world.at("remote")) == tables(&world.at("local")));
    assert_eq!(caption("s3://bucket/photos/", &at("remote/t.parquet"))["computed"], 0);
    caption("s3://bucket/set.tar.gz", &at("remote-tar/t.parquet"));
    assert!(tables(&world.at("remote-tar")) == tables(&world.at("local-tar")));
    // A table there is complete, and is gone on from.
    caption("s3://bucket/photos/", "s3://bucket/out/t.parquet");
    assert!(fs::read(store.join("bucket/out/t.parquet")).unwrap() == fs::read(world.at("local/t.parquet")).unwrap());
    assert_eq!(caption("s3://bucket/photos/", "s3://bucket/out/t.parquet")["computed"], 0);
    // Files of several parts.
    let mut embed = world.command(&["embed", "--save-images", "--out", "s3://bucket/e/", "--images"]);
    there(embed.env("XDG_CACHE_HOME", world.at("cache")).arg("s3://bucket/photos/"));
    run(&mut embed, 3);
    let mut here = world.command(&["embed", "--save-images", "--images"]);
    run(here.arg(&world.photos).arg("--out").arg(world.at("e")), 3);
    for name in ["part-00000.parquet", "images-00000.parquet"] {
        assert!(fs::read(store.join("bucket/e").join(name)).unwrap() == fs::read(world.at("e").join(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_dataset_of_gzipped_tars_in_a_bucket_is_embedded() {
    let world = World::new(8);
    let bare = world.at("bare");
    fs::create_dir(&bare).unwrap();
    for (number, key) in world.s3.keys().iter().filter(|key| key.contains("scene")).enumerate() {
        let extension = key.rsplit('.').next().unwrap();
        fs::write(bare.join(format!("{number}.{extension}")), world.s3.get(key).unwrap()).unwrap();
        fs::write(bare.join(format!("{number}.txt")), format!("第{number}张图")).unwrap();
    }
    pack(&bare, &["-z"], &world.at("set.tar.gz"));
    world.s3.put("set.tar.gz", fs::read(world.at("set.tar.gz")).unwrap());
    let embedded = |tar: PathBuf, name: &str| {
        let mut prepare = clipcap();
        world.s3.environment(&mut prepare);
        prepare
            .args(["prepare", "--quiet", "--with-images", "--images"])
            .arg(&tar)
            .arg("--out")
            .arg(world.at(&format!("d-{name}")));
        run(&mut prepare, 0);
        let mut command = world.command(&["embed", "--dataset"]);
        command.arg(world.at(&format!("d-{name}"))).arg("--images").arg(tar).arg("--out").arg(world.at(&format!("e-{name}")));
        run(&mut command, 0);
        let files = |folder: String| tables(&world.at(&folder));
        (files(format!("e-{name}")), files(format!("d-{name}")))
    };
    let here = embedded(world.at("set.tar.gz"), "here");
    assert_eq!(columns(&world.at("e-here/part-00000.parquet"), &["image_id"]).len(), 8);
    assert!(embedded("s3://bucket/set.tar.gz".into(), "there") == here);
}

#[test]
fn a_pipeline_over_a_bucket_runs_again_where_the_bucket_changed() {
    let world = World::new(6);
    let file = world.at("pipeline.toml");
    let port = world.s3.port;
    let signed = format!("http://127.0.0.1:{port}/bucket/one.png?signature={SECRET}");
    let picture = world.s3.keys().into_iter().find(|key| key.contains("scene")).unwrap();
    world.s3.put("one.png", world.s3.get(&picture).unwrap());
    let model = &world.bundle;
    let text = |signed: &str, out: &str| {
        format!(
            "[pipeline]\nout = {:?}\n[all]\ncommand = \"caption\"\ninput = \"s3://bucket/photos\"\nmodel = {model:?}\nmax_new_tokens = 3\n{out}\n\
             [one]\ncommand = \"caption\"\ninput = {signed:?}\nmodel = {model:?}\nmax_new_tokens = 3\nout = {:?}\n",
            world.at("out"),
            world.at("out/one.parquet"),
        )
    };
    let out = format!("out = {:?}", world.at("out/all.parquet"));
    let ran = |status: i32| -> Vec<String> {
        let mut command = clipcap();
        world.s3.environment(&mut command);
        let output = run(command.args(["--json", "run"]).arg(&file), status);
        let told = String::from_utf8(output.stdout).unwrap();
        let told: serde_json::Value = serde_json::from_str(told.lines().last().unwrap_or("null")).unwrap_or_default();
        let stages = told["stages"].as_array().cloned().unwrap_or_default();
        stages.iter().filter(|stage| stage["ran"] == true).map(|stage| stage["stage"].as_str().unwrap().into()).collect()
    };
    fs::write(&file, text(&signed, &out)).unwrap();
    assert_eq!(ran(3), ["all", "one"]);
    assert_eq!(ran(3), [""; 0]);
    // Another signature is no other input.
    fs::write(&file, text(&signed.replace("signature=", "signature=X"), &out)).unwrap();
    assert_eq!(ran(3), [""; 0]);
    for folder in ["out", "out/.clipcap"] {
        for entry in fs::read_dir(world.at(folder)).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            let bytes = fs::read(entry.path()).unwrap();
            assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{:?}", entry.path());
        }
    }
    world.s3.put("photos/a/more.png", world.s3.get("one.png").unwrap());
    assert_eq!(ran(3), ["all"]);
    // What is not there is told before anything runs, and nothing is made in a bucket.
    fs::write(&file, text(&signed.replace("one.png", "two.png"), &out)).unwrap();
    assert_eq!(ran(1), [""; 0]);
    fs::write(&file, text(&signed, "out = \"s3://bucket/t.parquet\"")).unwrap();
    assert_eq!(ran(1), [""; 0]);
}
