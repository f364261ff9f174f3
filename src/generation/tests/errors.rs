//! What does not fit is said, and errors of the caller's closures come back as they are.

use super::toy::{Toy, ToyDecoder, special_tokens};
use crate::generation::{GenerationError, Generator, Request, Settings, SpecialTokens, Strategy};

const TOY: Toy = Toy { vocab_size: 20, seed: 1, memory: 100, sep_bias: -100 };

fn error_of(settings: Settings, tokens: SpecialTokens, decoder: &mut ToyDecoder, request: Request) -> GenerationError {
    let mut generator = Generator::new(settings, tokens).expect("valid settings");
    let mut requests = Some(vec![request]);
    let result = generator.run(decoder, || Ok::<_, GenerationError>(requests.take()), |_| Ok(()));
    result.expect_err("this cannot work")
}

fn run_with(settings: Settings, tokens: SpecialTokens, decoder: &mut ToyDecoder, request: Request) -> String {
    error_of(settings, tokens, decoder, request).to_string()
}

#[test]
fn what_does_not_fit_is_named() {
    let beams = |num_beams| Settings { strategy: Strategy::Beam { num_beams, length_penalty: 1.0 }, ..Settings::default() };
    let message = run_with(beams(5), special_tokens(), &mut ToyDecoder::new(20, 4, 67), TOY.request(0));
    assert!(message.contains("--num-beams 5") && message.contains("holds 4"), "{message}");

    let message = run_with(Settings::default(), special_tokens(), &mut ToyDecoder::new(20, 4, 66), TOY.request(0));
    assert!(message.contains("--max-new-tokens 67") && message.contains("66 at most"), "{message}");

    let short = Request { prefix_embeds: vec![0.0; 5], ..TOY.request(8) };
    let message = run_with(Settings::default(), special_tokens(), &mut ToyDecoder::new(20, 4, 67), short);
    assert!(message.contains("image 8") && message.contains("has 5 numbers") && message.contains("2 x 3"), "{message}");

    let outside = SpecialTokens { banned: vec![], ..SpecialTokens::bert(20, 0) };
    let message = run_with(Settings::default(), outside, &mut ToyDecoder::new(20, 4, 67), TOY.request(0));
    assert!(message.contains("token 20 (what ends a caption)") && message.contains("vocabulary of 20"), "{message}");
}

#[test]
fn logits_that_are_not_finite_name_the_image() {
    let mut decoder = ToyDecoder::new(20, 4, 67);
    decoder.broken_after = 2;
    let error = error_of(Settings::default(), special_tokens(), &mut decoder, TOY.request(6));
    assert!(matches!(error, GenerationError::NotFinite { index: 6, num_tokens: 3 }), "{error}");
}

#[test]
fn errors_of_the_caller_pass_through_and_the_generator_lives_on() {
    let mut decoder = ToyDecoder::new(20, 4, 67);
    let mut generator = Generator::new(Settings::default(), special_tokens()).expect("valid settings");

    let failing_next = generator.run(&mut decoder, || Err(anyhow::anyhow!("no disk")), |_| Ok(()));
    assert_eq!(failing_next.expect_err("next failed").to_string(), "no disk");

    let mut requests = Some(vec![TOY.request(0), TOY.request(1)]);
    let failing_done = generator.run(&mut decoder, || anyhow::Ok(requests.take()), |_| Err(anyhow::anyhow!("disk full")));
    assert_eq!(failing_done.expect_err("done failed").to_string(), "disk full");

    let mut requests = Some(vec![TOY.request(0), TOY.request(1)]);
    let mut count = 0;
    let done = |_| {
        count += 1;
        anyhow::Ok(())
    };
    let stats = generator.run(&mut decoder, || Ok(requests.take()), done).expect("rows of the failed run are gone");
    assert_eq!((stats.num_images, count), (2, 2));
}
