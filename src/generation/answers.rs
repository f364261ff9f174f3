//! All rows' choices after a run, on all threads. A choice depends on its row alone.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::GenerationError;
use super::best::BestRow;
use super::constraints::Rules;
use super::search::{Choice, NotFinite, Scratch, Search};
use crate::models::decoder::{Best, Decoder};

/// One row's question: what does the search do after the logits at this place?
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub search: &'a Search,
    /// Of the search's rows.
    pub row: usize,
    /// Of the run's rows.
    pub place: usize,
}

pub(super) fn check_logits(found: usize, rows: usize, vocab_size: usize) -> Result<(), GenerationError> {
    if found == rows * vocab_size { Ok(()) } else { Err(GenerationError::Logits { found, rows, vocab_size }) }
}

/// Answers all questions, in their order, from whole rows of logits.
pub(super) fn answer(
    rules: &Rules,
    questions: &[Question],
    logits: &[f32],
    vocab_size: usize,
    scratch: &mut [Scratch],
    time: &mut Duration,
) -> Vec<Result<Choice, NotFinite>> {
    let one = |question: &Question, scratch: &mut Scratch| {
        let logits = &logits[question.place * vocab_size..][..vocab_size];
        question.search.choose(rules, question.row, logits, scratch)
    };
    on_all_threads(questions, scratch, time, one)
}

/// Answers all questions, in their order, from the best logits of each of the run's rows; where those do not suffice, from whole rows that are
/// asked for together.
pub(super) fn answer_best(
    rules: &Rules,
    questions: &[Question],
    best: &Best,
    rows: usize,
    decoder: &mut dyn Decoder,
    scratch: &mut [Scratch],
    time: &mut Duration,
) -> Result<Vec<Result<Choice, NotFinite>>, GenerationError> {
    let (vocab_size, count) = (decoder.vocab_size(), best.count);
    let width = 2 * count + 2;
    check_logits(best.numbers.len(), rows, width)?;
    let one = |question: &Question, scratch: &mut Scratch| {
        let numbers = &best.numbers[question.place * width..][..width];
        let row = BestRow {
            values: &numbers[..count],
            ids: &numbers[count..2 * count],
            log_sum: numbers[2 * count],
            warm_log_sum: numbers[2 * count + 1],
            vocab_size,
        };
        question.search.choose_best(rules, question.row, row, scratch)
    };
    let answers = on_all_threads(questions, scratch, time, one);
    let is_open = |answer: &Result<Option<Choice>, NotFinite>| matches!(answer, Ok(None));
    // Several searches may ask about one row: a prefix and its samples.
    let mut places: Vec<usize> =
        questions.iter().zip(&answers).filter(|(_, answer)| is_open(answer)).map(|(question, _)| question.place).collect();
    places.sort_unstable();
    places.dedup();
    let mut others = vec![].into_iter();
    if !places.is_empty() {
        let logits = decoder.whole_rows(&places)?;
        check_logits(logits.len(), places.len(), vocab_size)?;
        let mut open: Vec<Question> =
            questions.iter().zip(&answers).filter(|(_, answer)| is_open(answer)).map(|(question, _)| *question).collect();
        open.iter_mut().for_each(|question| question.place = places.partition_point(|&place| place < question.place));
        others = answer(rules, &open, &logits, vocab_size, scratch, time).into_iter();
    }
    let settled = answers.into_iter().map(|answer| match answer {
        Ok(Some(choice)) => Ok(choice),
        Ok(None) => others.next().unwrap_or(Err(NotFinite)),
        Err(not_finite) => Err(not_finite),
    });
    Ok(settled.collect())
}

fn on_all_threads<A: Send>(
    questions: &[Question],
    scratch: &mut [Scratch],
    time: &mut Duration,
    one: impl Fn(&Question, &mut Scratch) -> A + Sync,
) -> Vec<A> {
    // A few rows cost less than waking the threads.
    const FEW: usize = 3;
    let clock = Instant::now();
    let num_threads = if questions.len() <= FEW { 1 } else { scratch.len() };
    let share = questions.len().div_ceil(num_threads).max(1);
    let all = |questions: &[Question], scratch: &mut Scratch| -> Vec<A> {
        questions.iter().map(|question| one(question, scratch)).collect()
    };
    let answers = match scratch {
        [only, ..] if num_threads == 1 => all(questions, only),
        _ => {
            let parts = questions.par_chunks(share).zip(scratch).map(|(part, scratch)| all(part, scratch));
            parts.collect::<Vec<_>>().into_iter().flatten().collect()
        }
    };
    *time += clock.elapsed();
    answers
}
