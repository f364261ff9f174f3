//! Which language captions are in, by their letters; and which language a column is called after.

use crate::text::han::is_han;

/// Names of languages in names of columns.
const NAMES: [(&str, &[&str]); 6] = [
    ("zh", &["zh", "cn", "zhcn", "chs", "chinese", "中文", "汉语"]),
    ("en", &["en", "eng", "english", "英文", "英语"]),
    ("ja", &["ja", "jp", "japanese", "日文"]),
    ("ko", &["ko", "kr", "korean", "韩文"]),
    ("de", &["de", "german", "德文"]),
    ("fr", &["fr", "french", "法文"]),
];

/// Words for captions in names of columns.
const CAPTIONS: [&str; 9] = ["caption", "captions", "text", "sentence", "description", "说明", "描述", "标题", "文本"];

/// The language of a caption column that is called after one: `caption_zh`, `en_caption`, `说明_英文`.
pub fn of_column(name: &str) -> Option<&'static str> {
    let lower = name.trim().to_lowercase();
    let parts: Vec<&str> = lower.split(['_', '-', ' ', '.', '(', ')']).filter(|part| !part.is_empty()).collect();
    let language = |part: &str| NAMES.iter().find(|(_, names)| names.contains(&part)).map(|(language, _)| *language);
    if parts.len() > 1 && parts.iter().any(|part| CAPTIONS.contains(part)) {
        return parts.iter().find_map(|part| language(part));
    }
    // 中文说明
    let rest = CAPTIONS.iter().find_map(|word| lower.strip_suffix(word));
    rest.filter(|rest| !rest.is_ascii()).and_then(language)
}

/// The language of most of some captions; `zh+en` where both are common, and nothing where there are no letters.
pub fn of_captions<'a>(captions: impl Iterator<Item = &'a str>) -> String {
    let (mut zh, mut ja, mut ko, mut latin, mut all) = (0u32, 0u32, 0u32, 0u32, 0u32);
    for caption in captions {
        let has = |is: fn(char) -> bool| caption.chars().filter(|c| is(*c)).count();
        let kana = has(|c| ('\u{3040}'..='\u{30ff}').contains(&c));
        let hangul = has(|c| ('\u{ac00}'..='\u{d7a3}').contains(&c));
        let (han, letters) = (has(is_han), has(|c| c.is_ascii_alphabetic()));
        all += 1;
        match () {
            () if kana > 0 => ja += 1,
            () if hangul > 0 => ko += 1,
            // Names and brands stand in Chinese captions too.
            () if han > 0 => zh += 1,
            () if letters > 0 => latin += 1,
            () => all -= 1,
        }
    }
    let counts = [("zh", zh), ("ja", ja), ("ko", ko), ("en", latin)];
    let common: Vec<&str> = counts.iter().filter(|(_, count)| count * 5 > all).map(|(name, _)| *name).collect();
    common.join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_by_letters_and_by_names() {
        assert_eq!(of_captions(["一只狗", "一只 T恤", "两只猫"].into_iter()), "zh");
        assert_eq!(of_captions(["a dog", "two cats"].into_iter()), "en");
        assert_eq!(of_captions(["a dog", "一只狗"].into_iter()), "zh+en");
        assert_eq!(of_captions(["犬がいる"].into_iter()), "ja");
        assert_eq!(of_captions(["12", ""].into_iter()), "");
        for (name, language) in [
            ("caption_zh", "zh"),
            ("en_caption", "en"),
            ("Caption EN", "en"),
            ("说明_英文", "en"),
            ("中文说明", "zh"),
            ("中文描述", "zh"),
        ] {
            assert_eq!(of_column(name), Some(language), "{name}");
        }
        for name in ["caption", "zh", "caption_index", "image_en", "说明"] {
            assert_eq!(of_column(name), None, "{name}");
        }
    }
}
