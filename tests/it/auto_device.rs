//! `--device auto` where OpenVINO is installed: the faster of it and the CPU, as measured once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::{beside, checkout, clipcap, openvino, run, scenes, tiny_bundle};

/// The program with a cache of its own.
struct Place {
    folder: tempfile::TempDir,
    images: PathBuf,
    model: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (images, model) = (scenes(folder.path(), 6), tiny_bundle(folder.path()));
        Self { folder, images, model }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = clipcap();
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    /// Embeds and gives what was said.
    fn embed(&self, images: &Path, out: &str, flags: &[&str]) -> String {
        let mut command = self.command();
        command.arg("embed").arg("--images").arg(images).arg("--model").arg(&self.model).arg("--out").arg(self.path(out));
        String::from_utf8(run(command.arg("-v").args(flags), 0).stderr).unwrap()
    }

    /// The device that an output says it was made on.
    fn device(&self, out: &str) -> String {
        let manifest: Value = serde_json::from_slice(&fs::read(beside(&self.path(out), "manifest.json")).unwrap()).unwrap();
        manifest["settings"]["model"]["device"].as_str().unwrap().into()
    }

    fn part(&self, out: &str) -> Vec<u8> {
        fs::read(self.path(out).join("part-00000.parquet")).unwrap()
    }

    /// The one file of what was measured.
    fn speeds(&self) -> PathBuf {
        let files: Vec<_> = fs::read_dir(self.path("cache/clipcap/devices")).unwrap().collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].as_ref().unwrap().path()
    }

    /// Puts other figures in its place.
    fn pretend(&self, [cpu, openvino]: [[f64; 2]; 2]) {
        let path = self.speeds();
        let mut kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        // The checksum is of the file with zeros in its place.
        kept["crc32c"] = "00000000".into();
        for (name, [start, speed]) in [("cpu", cpu), ("openvino", openvino)] {
            kept["speeds"][name] = serde_json::json!({"start_seconds": start, "images_per_second": speed});
        }
        let text = serde_json::to_string_pretty(&kept).unwrap();
        let checksum = format!("{:08x}", crc32c::crc32c(text.as_bytes()));
        fs::write(&path, text.replace("\"crc32c\": \"00000000\"", &format!("\"crc32c\": \"{checksum}\""))).unwrap();
    }
}

#[test]
fn auto_takes_the_faster_device_and_goes_on_with_it() {
    if !openvino() {
        return;
    }
    let place = Place::new();
    let said = place.embed(&place.images, "few", &[]);
    assert!(said.contains("not measured for so little work"), "{said}");
    assert_eq!(place.device("few"), "cpu");
    assert!(!place.path("cache/clipcap").exists());

    let mut command = place.command();
    let output = run(command.args(["doctor", "--json", "--model"]).arg(&place.model), 0);
    let doctor: Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in ["cpu", "openvino"] {
        let speed = &doctor["auto"]["speeds"][name];
        assert!(speed["images_per_second"].as_f64().unwrap() > 0.0, "{doctor}");
        assert!(speed["start_seconds"].as_f64().unwrap() > 0.0, "{doctor}");
    }
    assert_eq!(doctor["auto"]["file"].as_str().unwrap(), place.speeds().to_str().unwrap());

    place.pretend([[1.0, 10.0], [1.0, 20.0]]);
    let said = place.embed(&place.images, "auto", &[]);
    assert!(said.contains("--device auto: openvino (20.0 images/s on openvino, 10.0 on cpu)"), "{said}");
    assert!(said.contains("on openvino, fp32"), "{said}");
    assert_eq!(place.device("auto"), "openvino");
    place.embed(&place.images, "named", &["--device", "openvino"]);
    assert_eq!(place.part("auto"), place.part("named"));

    // What is there decides, finished or not, unless it goes.
    place.pretend([[1.0, 30.0], [1.0, 20.0]]);
    let said = place.embed(&place.images, "auto", &["--keep-work"]);
    assert!(said.contains("--device auto: openvino, which computed what is there already"), "{said}");
    fs::remove_dir_all(place.path("auto")).unwrap();
    fs::remove_dir_all(place.path(".clipcap")).unwrap();
    let said = place.embed(&place.images, "auto", &[]);
    assert!(said.contains("--device auto: openvino, which computed what is there already"), "{said}");
    assert_eq!(place.part("auto"), place.part("named"));
    let said = place.embed(&place.images, "auto", &["--overwrite"]);
    assert!(said.contains("--device auto: cpu (20.0 images/s on openvino, 30.0 on cpu)"), "{said}");
    assert_eq!(place.part("auto"), place.part("few"));
    place.pretend([[1.0, 10.0], [1.0, 20.0]]);
    let said = place.embed(&place.images, "auto", &[]);
    assert!(said.contains("--device auto: cpu computed what is there already"), "{said}");

    // Six images do not make up for a start that is seven images longer.
    place.pretend([[1.0, 10.0], [1.34, 20.0]]);
    let said = place.embed(&place.images, "start", &[]);
    assert!(said.contains("is the faster from 7 images on"), "{said}");
    assert_eq!(place.device("start"), "cpu");

    // A file that was changed by hand is not believed.
    let path = place.speeds();
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("20.0", "90.0")).unwrap();
    let said = place.embed(&place.images, "changed", &[]);
    assert!(said.contains("not measured for so little work"), "{said}");
}

#[test]
fn auto_measures_before_much_work_and_captions_as_the_device_that_it_names() {
    if !openvino() {
        return;
    }
    let place = Place::new();
    // Of a tar the size alone is looked at.
    let tar = place.path("images.tar");
    run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&place.images).arg("."), 0);
    fs::File::options().write(true).open(&tar).unwrap().set_len(1 << 42).unwrap();
    let caption = |out: &str, flags: &[&str]| {
        let mut command = place.command();
        command.arg("caption").arg(&tar).arg("--model").arg(&place.model).arg("--out").arg(place.path(out));
        String::from_utf8(run(command.args(["--max-new-tokens", "5"]).args(flags), 0).stderr).unwrap()
    };
    let said = caption("auto.parquet", &[]);
    assert!(said.contains("measuring cpu and openvino") && said.contains(" images/s on openvino, "), "{said}");
    let device = place.device("auto.parquet");
    caption("named.parquet", &["--device", &device]);
    let bytes = |out: &str| fs::read(place.path(out)).unwrap();
    assert_eq!(bytes("auto.parquet"), bytes("named.parquet"));
    let said = caption("again.parquet", &["--quiet"]);
    assert!(said.is_empty(), "{said}");
    let said = caption("bf16.parquet", &["--precision", "bf16"]);
    assert!(said.contains("--device auto: openvino, which computes bf16 here"), "{said}");
    assert_eq!(place.device("bf16.parquet"), "openvino");
}

#[test]
fn auto_is_the_cpu_where_openvino_cannot_be_measured() {
    let place = Place::new();
    let runtime = place.path("runtime");
    fs::create_dir_all(runtime.join("openvino")).unwrap();
    std::os::unix::fs::symlink(checkout().join("runtime/cpu"), runtime.join("cpu")).unwrap();
    fs::write(runtime.join("openvino/libopenvino_c.so"), "no library").unwrap();
    let mut command = place.command();
    let output = run(command.env("CLIPCAP_RUNTIME", &runtime).arg("doctor").arg("--model").arg(&place.model), 0);
    let said = String::from_utf8(output.stdout).unwrap();
    let why = "cpu, because openvino could not be compared with it: openvino: ";
    assert!(said.contains(&format!("auto          caption and embed: {why}")), "{said}");
    let mut command = place.command();
    command.env("CLIPCAP_RUNTIME", &runtime).arg("embed").arg("--images").arg(&place.images);
    let output = run(command.arg("--model").arg(&place.model).arg("--out").arg(place.path("e")), 0);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("--device auto: {why}")), "{said}");
    assert_eq!(place.device("e"), "cpu");
}
