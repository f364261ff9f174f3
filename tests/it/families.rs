//! Every family of image encoders in its published layout: the embeddings PyTorch gives, in every precision; and what is not understood
//! whole is refused by name.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::golden::Golden;
use crate::common::{cases, clipcap, run};

fn init(clip: &Path, out: &Path) -> std::process::Command {
    let mut command = clipcap();
    command.args(["model", "init", "--gpt2", "gpt2-tiny", "--mapper", "mlp", "--prefix-len", "2", "--quiet", "--overwrite"]);
    command.arg("--clip").arg(clip).arg("--out").arg(out);
    command
}

/// What a refused `model init` says.
fn refused(clip: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = run(&mut init(clip, &folder.path().join("out")), 1);
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Embeddings of a folder of photos, in the order of their names.
fn embeddings(model: &Path, photos: &Path, flags: &[&str]) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("e");
    let mut command = clipcap();
    command.args(["embed", "--quiet"]).args(flags).arg("--images").arg(photos).arg("--model").arg(model).arg("--out").arg(&out);
    run(&mut command, 0);
    let mut rows = vec![];
    for batch in clipcap::table::open(&out.join("part-00000.parquet"), None).unwrap() {
        let batch = batch.unwrap();
        let column = batch.column_by_name("embedding").unwrap().as_any();
        let list: &arrow::array::FixedSizeListArray = column.downcast_ref().unwrap();
        let values: &arrow::array::Float32Array = list.values().as_any().downcast_ref().unwrap();
        rows.extend(values.values().chunks(list.value_length() as usize).map(<[f32]>::to_vec));
    }
    rows
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The golden photos in the order of the expected values, copied under names in that order.
fn golden_photos(golden: &Golden, to: &Path) -> usize {
    let names = golden.texts("photos");
    fs::create_dir_all(to).unwrap();
    for (number, name) in names.iter().enumerate() {
        fs::copy(golden.photos.join(name), to.join(format!("{number:02}.jpg"))).unwrap();
    }
    names.len()
}

#[test]
fn embeddings_of_every_family_are_pytorchs_in_float_and_near_in_8_bits() {
    Golden::all().iter().for_each(embeddings_are_the_golden_ones);
}

fn embeddings_are_the_golden_ones(golden: &Golden) {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    let count = golden_photos(golden, &photos);
    for (name, file, family) in [
        ("clip_text", "clip_text", "CLIP, vision transformer"),
        ("openai_resnet", "openai_resnet.pt", "CLIP, ResNet"),
        ("chinese_clip", "chinese_clip", "Chinese-CLIP"),
        ("siglip", "siglip", "SigLIP"),
        ("open_clip", "open_clip", "CLIP, vision transformer"),
    ] {
        let model = folder.path().join(name);
        run(&mut init(&golden.path(file), &model), 0);
        let text = run(clipcap().args(["model", "inspect", "--verify"]).arg(&model), 0).stdout;
        assert!(String::from_utf8_lossy(&text).contains(&format!("image    {family}")), "{name}");
        let wanted = golden.tensors(name).read_f32("image_embeds").unwrap();
        let compare = |flags: &[&str], model: &Path, least: f64| {
            let found = embeddings(model, &photos, flags);
            assert_eq!(found.len(), count);
            for (photo, (found, wanted)) in found.iter().zip(wanted.chunks(wanted.len() / count)).enumerate() {
                let cosine = cosine(found, wanted);
                assert!(cosine >= least, "{name}, photo {photo}: {cosine} {flags:?}");
            }
        };
        compare(&[], &model, 0.9999);
        let quantized = folder.path().join(format!("{name}-int8"));
        run(clipcap().args(["model", "quantize", "--quiet"]).arg(&model).arg("--out").arg(&quantized), 0);
        compare(&["--precision", "int8"], &quantized, 0.99);
    }
}

/// The fixtures have open_clip models whose activation and heads are not OpenAI's.
#[test]
fn open_clip_is_computed_as_its_configuration_says() {
    for case in ["openclip_gelu", "openclip_heads"] {
        let source = cases(case);
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        let expected: Value = serde_json::from_slice(&fs::read(source.join("expected.json")).unwrap()).unwrap();
        let wanted: Vec<f32> = serde_json::from_value(expected["right"].clone()).unwrap();
        // The folder, and the file inside it.
        for given in [source.clone(), source.join("open_clip_model.safetensors")] {
            run(&mut init(&given, &model), 0);
            let found = embeddings(&model, &source.join("photos"), &[]);
            assert!(found[0].iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-4), "{case}: {found:?}");
        }
        // Alone, the file does not say how it is computed.
        let alone = folder.path().join("ViT-B-32.safetensors");
        fs::copy(source.join("open_clip_model.safetensors"), &alone).unwrap();
        let message = refused(&alone);
        assert!(message.contains("open_clip_config.json") && message.contains("ViT-B-32.safetensors"), "{message}");
    }
}

/// A copy of the small open_clip model with its configuration changed.
fn open_clip_with(folder: &Path, name: &str, change: impl Fn(&mut Value)) -> PathBuf {
    let source = cases("openclip_gelu");
    let copy = folder.join(name);
    fs::create_dir_all(&copy).unwrap();
    fs::copy(source.join("open_clip_model.safetensors"), copy.join("open_clip_model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(source.join("open_clip_config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(copy.join("open_clip_config.json"), config.to_string()).unwrap();
    copy
}

#[test]
fn what_open_clip_says_and_is_not_known_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (section, key, value) in [
        ("vision_cfg", "ls_init_value", json!(1e-5)),
        ("vision_cfg", "global_average_pool", json!(true)),
        ("vision_cfg", "attentional_pool", json!(true)),
        ("vision_cfg", "attentional_pool", json!("parallel")),
        ("vision_cfg", "pool_type", json!("avg")),
        ("vision_cfg", "no_ln_pre", json!(true)),
        ("vision_cfg", "final_ln_after_pool", json!(true)),
        ("vision_cfg", "qk_norm", json!(true)),
        ("vision_cfg", "norm_kwargs", json!({"bias": false})),
        ("vision_cfg", "timm_model_name", json!("vit_base_patch16_siglip_224")),
        ("vision_cfg", "image_size", json!([8, 16])),
        ("vision_cfg", "head_width", json!(48)),
        ("vision_cfg", "something_new", json!(7)),
    ] {
        let change = |config: &mut Value| config["model_cfg"][section][key] = value.clone();
        let copy = open_clip_with(folder.path(), "refused", change);
        let message = refused(&copy);
        assert!(message.contains("open_clip_config.json"), "{key}: {message}");
        assert!(message.contains(key) || message.contains("timm"), "{key}: {message}");
    }
    for (key, value) in
        [("resize_mode", json!("tile")), ("interpolation", json!("random")), ("mode", json!("L")), ("size", json!(9))]
    {
        let copy = open_clip_with(folder.path(), "refused", |config| config["preprocess_cfg"][key] = value.clone());
        assert!(refused(&copy).contains(key), "{key}");
    }
}

#[test]
fn what_open_clip_says_without_effect_is_taken_and_what_it_says_counts() {
    let folder = tempfile::tempdir().unwrap();
    let plain = open_clip_with(folder.path(), "plain", |_| {});
    let photos = cases("openclip_gelu/photos");
    let embed = |clip: &Path| {
        let model = folder.path().join("model");
        run(&mut init(clip, &model), 0);
        embeddings(&model, &photos, &[]).remove(0)
    };
    let plain = embed(&plain);
    let same = open_clip_with(folder.path(), "same", |config| {
        config["model_cfg"]["vision_cfg"]["patch_dropout"] = json!(0.5);
        config["model_cfg"]["vision_cfg"]["pool_type"] = json!("tok");
        config["model_cfg"]["vision_cfg"]["ls_init_value"] = Value::Null;
        config["model_cfg"]["vision_cfg"]["output_tokens"] = json!(true);
        config["preprocess_cfg"]["size"] = json!([8, 8]);
        config["preprocess_cfg"]["resize_mode"] = json!("shortest");
    });
    assert_eq!(embed(&same), plain);
    // A name that says QuickGELU counts where the file is silent, and not against it.
    let silent = |config: &mut Value| drop(config["model_cfg"].as_object_mut().unwrap().remove("quick_gelu"));
    let quick = |config: &mut Value| config["model_cfg"]["quick_gelu"] = json!(true);
    let wanted = embed(&open_clip_with(folder.path(), "quick", quick));
    assert_ne!(wanted, plain);
    assert_eq!(embed(&open_clip_with(folder.path(), "ViT-B-32-quickgelu", silent)), wanted);
    assert_eq!(embed(&open_clip_with(folder.path(), "silent", silent)), plain);
    let tagged = open_clip_with(folder.path(), "tagged", |config| {
        silent(config);
        config["pretrained_tag"] = json!("openai");
    });
    assert_eq!(embed(&tagged), wanted);
    for (key, value) in [
        ("mean", json!([0.5, 0.5, 0.5])),
        ("std", json!([0.5, 0.5, 0.5])),
        ("interpolation", json!("bilinear")),
        ("resize_mode", json!("squash")),
    ] {
        let other = open_clip_with(folder.path(), key, |config| config["preprocess_cfg"][key] = value.clone());
        let wide = folder.path().join("wide");
        fs::create_dir_all(&wide).unwrap();
        image::RgbImage::from_fn(31, 17, |x, y| image::Rgb([(x * 7) as u8, (y * 13) as u8, (x * y) as u8]))
            .save(wide.join("a.png"))
            .unwrap();
        let (model, plain) = (folder.path().join("model"), folder.path().join("plain"));
        run(&mut init(&other, &model), 0);
        let changed = embeddings(&model, &wide, &[]);
        run(&mut init(&plain, &model), 0);
        assert_ne!(changed, embeddings(&model, &wide, &[]), "{key}");
    }
}

#[test]
fn a_folder_without_a_whole_weight_file_is_no_model() {
    let source = Golden::own().path("siglip");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("clip");
    let set_up = |weights: Option<&str>| {
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir_all(&copy).unwrap();
        for name in ["config.json", "preprocessor_config.json"] {
            fs::copy(source.join(name), copy.join(name)).unwrap();
        }
        if let Some(name) = weights {
            fs::copy(source.join("model.safetensors"), copy.join(name)).unwrap();
        }
    };
    set_up(None);
    assert!(refused(&copy).contains("--random makes random ones"));
    run(init(&copy, &folder.path().join("random")).arg("--random"), 0);
    for name in ["model.safetensors.part", "model.safetensors.incomplete", "model (1).safetensors", "siglip.pt"] {
        set_up(Some(name));
        let message = refused(&copy);
        assert!(message.contains(name), "{message}");
        // Not even where random ones would do: somebody meant these.
        let output = run(init(&copy, &folder.path().join("random")).arg("--random"), 1);
        assert!(String::from_utf8_lossy(&output.stderr).contains(name));
    }
    set_up(None);
    std::os::unix::fs::symlink("../blobs/gone", copy.join("model.safetensors")).unwrap();
    assert!(refused(&copy).contains("model.safetensors (a link to nothing)"));
    set_up(None);
    fs::write(copy.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n").unwrap();
    assert!(refused(&copy).contains("git-lfs"));
    assert!(refused(&copy.join("model.safetensors")).contains("git-lfs"));
}

#[test]
fn a_cache_folder_is_taken_as_it_lies() {
    let source = Golden::own().path("clip_text");
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("models--openai--clip");
    let (blobs, snapshot) = (cache.join("blobs"), cache.join("snapshots/0123abcd"));
    [&blobs, &snapshot, &cache.join("refs")].iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    fs::write(cache.join("refs/main"), "0123abcd").unwrap();
    for (number, entry) in fs::read_dir(&source).unwrap().enumerate() {
        let path = entry.unwrap().path();
        fs::copy(&path, blobs.join(format!("{number:064x}"))).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{number:064x}"), snapshot.join(path.file_name().unwrap())).unwrap();
    }
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    run(&mut init(&cache, &one), 0);
    run(&mut init(&source, &other), 0);
    for file in ["clip/model.safetensors", "clip/config.json", "clip/vocab.json", "image_encoder.onnx"] {
        assert!(!one.join(file).symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read(one.join(file)).unwrap(), fs::read(other.join(file)).unwrap(), "{file}");
    }
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    fs::write(blobs.join("77.incomplete"), "x").unwrap();
    assert!(refused(&cache).contains("77.incomplete (an unfinished download)"));
    let message = refused(Path::new("openai/clip-vit-base-patch32"));
    assert!(message.contains("hf download openai/clip-vit-base-patch32"), "{message}");
}
