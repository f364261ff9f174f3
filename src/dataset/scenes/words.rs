//! The words for what a scene shows, and the sentences that use them. A value's first word is the usual one.

/// Words of one attribute, a list for each value.
pub type Values = &'static [&'static [&'static str]];

pub const COLOURS: Values =
    &[&["红色", "红"], &["蓝色", "蓝"], &["绿色", "绿"], &["黄色", "黄"], &["紫色", "紫"], &["橙色", "橙"]];
pub const SHAPES: Values =
    &[&["圆环", "圆圈"], &["正方形", "方块"], &["三角形", "三角"], &["十字形", "十字"], &["五角星", "星形"]];
pub const POSITIONS: Values = &[&["左边", "左侧"], &["右边", "右侧"], &["上方", "上面"], &["下方", "下面"], &["中间", "中央"]];
pub const SIZES: Values = &[&["小"], &["大"]];
pub const BACKGROUNDS: Values = &[&["白色"], &["灰色"], &["黑色"]];
pub const COUNTS: Values = &[&["一个"], &["两个"], &["三个"]];

/// Words apart by spaces, as segmented corpora have them. `C` colour, `S` shape, `P` position, `Z` size, `B` background, `N` count: all name
/// colour, shape and position, as people do, and some leave out the rest.
pub const SENTENCES: [&str; 8] = [
    "B 背景 的 P 有 N Z C S 。",
    "P 有 N C 的 Z S ， 背景 是 B 的 。",
    "N Z 的 C S 在 B 背景 的 P 。",
    "画面 P 是 N C S 。",
    "B 的 画面 里 ， P 有 N Z 的 C S 。",
    "P 画 着 N C 的 S ， 是 Z 的 。",
    "N C 的 S 位于 画面 P 。",
    "在 P 可以 看到 N Z 的 C S 。",
];

/// Which value of an attribute a text names: the only one of which it has a word.
pub fn named(values: Values, text: &str) -> Option<usize> {
    let mut found = (0..values.len()).filter(|&value| values[value].iter().any(|word| text.contains(word)));
    let first = found.next();
    first.filter(|_| found.next().is_none())
}
