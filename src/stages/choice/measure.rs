//! A measurement: each device in a process of its own, asked in turn, so that what else the machine does falls on both.
//!
//! A process loads the image encoder and says `{"start_seconds": S}`; for every line that it is sent it encodes a small batch of noise and says
//! `{"images_per_second": N}`. It ends with its input.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value as Json, json};

use super::speeds::{Contest, Speed, Speeds, seconds_per_image};
use crate::models::{Bundle, ImageEncoder};
use crate::pipeline::Interrupt;
use crate::runtime::{Device, Precision, Runtime};
use crate::stages::embed;
use crate::stages::loading::check_weights;

/// A measurement that is not done by then is given up.
const LONGEST: Duration = Duration::from_secs(30);
/// Batches of each device, of which the fastest counts, and the time after which no more are begun.
const ROUNDS: usize = 5;
const ENOUGH: Duration = Duration::from_secs(3);

/// What one process is to measure.
pub struct Timed<'a> {
    pub bundle: &'a Bundle,
    pub device: Device,
    pub precision: Precision,
    pub threads: Option<usize>,
}

/// The process's part: answers on `output` whatever comes on `input`.
///
/// # Errors
/// The encoder cannot be loaded or does not run.
pub fn answer(timed: &Timed<'_>, input: impl BufRead, mut output: impl Write) -> Result<()> {
    let begin = Instant::now();
    let runtime = Runtime::start(timed.device, timed.precision, timed.threads)?;
    let batch = images_at_once(timed.bundle, runtime.threads());
    let mut encoder = embed::load(timed.bundle, &runtime, batch)?;
    let start_seconds = begin.elapsed().as_secs_f64();
    let side = timed.bundle.clip_config().vision_config.image_size();
    // Any numbers do, if none of them is special.
    let image: Vec<f32> = (0..3 * side * side).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect();
    let images = vec![image.as_slice(); batch];
    encoder.encode_each(&images)?;
    let mut say = |answer: Json| writeln!(output, "{answer}").and_then(|()| output.flush());
    say(json!({"start_seconds": start_seconds}))?;
    for line in input.lines() {
        line?;
        let begin = Instant::now();
        encoder.encode_each(&images)?;
        say(json!({"images_per_second": batch as f64 / begin.elapsed().as_secs_f64()}))?;
    }
    Ok(())
}

/// A second's work at most, and a number that two streams share evenly.
fn images_at_once(bundle: &Bundle, threads: usize) -> usize {
    let images = (1.0 / seconds_per_image(bundle, threads)).clamp(2.0, 16.0) as usize;
    images / 2 * 2
}

/// Measures both. What fails or takes too long has no speed.
pub(super) fn speeds(contest: &Contest, bundle: &Bundle, interrupt: &Interrupt) -> Speeds {
    let mut speeds = Speeds { cpu: None, openvino: None, failure: None, is_late: false };
    let until = Instant::now() + LONGEST;
    if let Err(error) = measure(contest, bundle, until, interrupt, &mut speeds) {
        speeds.failure = Some(format!("{error:#}"));
        speeds.is_late = Instant::now() >= until;
    }
    speeds
}

fn measure(contest: &Contest, bundle: &Bundle, until: Instant, interrupt: &Interrupt, speeds: &mut Speeds) -> Result<()> {
    // Who is first would wait for the disk, and the other find the weights in memory.
    check_weights(bundle, &["clip"], contest.precision)?;
    // The CPU is what `auto` is without OpenVINO.
    let mut cpu = Process::start("cpu", Device::Auto, contest, bundle)?;
    let cpu_start = cpu.answer("start_seconds", until, interrupt)?;
    let mut openvino = Process::start("openvino", Device::OpenVino, contest, bundle)?;
    let openvino_start = openvino.answer("start_seconds", until, interrupt)?;
    let (mut cpu_fastest, mut openvino_fastest) = (0f64, 0f64);
    let begin = Instant::now();
    for round in 0..ROUNDS {
        if round > 1 && begin.elapsed() > ENOUGH {
            break;
        }
        cpu_fastest = cpu_fastest.max(cpu.asked("images_per_second", until, interrupt)?);
        openvino_fastest = openvino_fastest.max(openvino.asked("images_per_second", until, interrupt)?);
    }
    speeds.cpu = Some(Speed { start_seconds: cpu_start, images_per_second: cpu_fastest });
    speeds.openvino = Some(Speed { start_seconds: openvino_start, images_per_second: openvino_fastest });
    Ok(())
}

/// A process that measures one device; it ends when this does.
struct Process {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    fn start(name: &'static str, device: Device, contest: &Contest, bundle: &Bundle) -> Result<Self> {
        let program = std::env::current_exe().context("the program does not know where it lies")?;
        let mut command = Command::new(&program);
        command.args(["time-device", "--device", &device.to_string(), "--precision", &contest.precision.to_string()]);
        command.args(["--threads", &contest.threads.to_string(), "--model"]).arg(bundle.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { bail!("a process without pipes") };
        let (send, lines) = channel();
        std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Ok(Self { name, child, input, lines })
    }

    /// Has a batch computed.
    fn asked(&mut self, key: &str, until: Instant, interrupt: &Interrupt) -> Result<f64> {
        // A process that has ended says so below.
        let _ = self.input.write_all(b"\n").and_then(|()| self.input.flush());
        self.answer(key, until, interrupt)
    }

    /// The number under `key` in the next line.
    fn answer(&mut self, key: &str, until: Instant, interrupt: &Interrupt) -> Result<f64> {
        const LOOK: Duration = Duration::from_millis(50);
        loop {
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => {
                    let answer: Json = serde_json::from_str(&line).unwrap_or_default();
                    if let Some(error) = answer["error"].as_str() {
                        bail!("{}: {error}", self.name);
                    }
                    return answer[key]
                        .as_f64()
                        .with_context(|| format!("{}: a measurement that is no number: {line}", self.name));
                }
                Err(RecvTimeoutError::Timeout) if interrupt.is_set() => bail!("interrupted"),
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} took longer than {} s to be measured", self.name, LONGEST.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().map_err(|error| anyhow!("{}: {error}", self.name))?;
                    bail!("{} ended while it was measured ({status})", self.name);
                }
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has nothing to lose; one that has ended is merely collected.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
