use clap::{CommandFactory, Parser};

use super::*;

#[derive(Parser)]
struct Alone {
    #[command(flatten)]
    args: CaptionArgs,
}

fn parse(words: &[&str]) -> CaptionArgs {
    let words = ["caption"].iter().chain(words).copied();
    Alone::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).args
}

/// Every flag of the original's predict.py, with a value where it takes one.
const ORIGINAL: &[(&str, Option<&str>)] = &[
    ("--image_path", Some("datasets/test")),
    ("--model_path", Some("bundle")),
    ("--gpt2_model_path", Some("pretrain_models/gpt2")),
    ("--bert_model_path", Some("pretrain_models/bert")),
    ("--clip_model_path", Some("pretrain_models/ViT-B-32.pt")),
    ("--output_path", Some("output")),
    ("--prefix_len", Some("10")),
    ("--constant_len", Some("10")),
    ("--clip_size", Some("512")),
    ("--max_len", Some("100")),
    ("--batch_size", Some("4")),
    ("--temperature", Some("1")),
    ("--topk", Some("0")),
    ("--topp", Some("0.8")),
    ("--num_generate", Some("2")),
    ("--finetune_gpt2", None),
    ("--mapping_type", Some("mlp")),
    ("--normalize_prefix", None),
];

#[test]
fn every_flag_of_the_original_is_understood() {
    let words: Vec<&str> = ORIGINAL.iter().flat_map(|(flag, value)| [Some(*flag), *value]).flatten().collect();
    let args = parse(&words);
    assert_eq!(args.image_path, [PathBuf::from("datasets/test")]);
    assert_eq!((args.model, args.out, args.batch_size), (Some("bundle".into()), Some("output".into()), Some(4)));
    let decoding = generation::Settings::from_flags(&args.decoding.flags()).unwrap();
    assert_eq!((decoding.num_captions, decoding.max_new_tokens), (2, 100));
    let generation::Strategy::Sample(sampling) = decoding.strategy else { panic!("no sampling") };
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (1.0, 0, 0.8));
    assert!(args.original.finetune_gpt2 && args.original.normalize_prefix);
}

#[test]
fn every_flag_may_be_spelled_with_underscores_and_has_a_help_text() {
    for argument in Alone::command().get_arguments() {
        let Some(long) = argument.get_long().filter(|_| !argument.is_hide_set()) else { continue };
        assert!(argument.get_help().is_some(), "--{long} has no help text");
        let spelled = long.replace('-', "_");
        let known = argument.get_all_aliases().unwrap_or_default();
        assert!(spelled == long || known.contains(&spelled.as_str()), "--{spelled} is not understood");
    }
}

#[test]
fn a_source_is_needed_and_two_kinds_exclude_each_other() {
    for words in [
        &["--model", "m", "--out", "o"][..],
        &["a", "--embeddings", "e", "--model", "m", "--out", "o"],
        &["a", "--model", "m"],
        &["a", "--model", "m", "--out", "o", "--max-error-rate", "1.5"],
        &["a", "--model", "m", "--out", "o", "--batch-size", "0"],
    ] {
        assert!(Alone::try_parse_from(["caption"].iter().chain(words)).is_err(), "{words:?}");
    }
    assert_eq!(parse(&["a", "b", "--model", "m", "--out", "o"]).paths.len(), 2);
}
