//! What the book's pages have a reader do.

/// The fenced blocks of `page` in `language`.
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let starts = page.split(fence.as_str()).skip(1);
    starts
        .filter_map(|rest| rest.split_once("```"))
        .map(|(block, _)| block.to_owned())
        .collect()
}

/// The commands that root is shown to type, in order.
pub fn root_commands(page: &str) -> Vec<String> {
    blocks(page, "console")
        .iter()
        .flat_map(|block| block.lines())
        .filter_map(|line| line.strip_prefix("# "))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_apart_by_language() {
        let page = "a\n```sh\none\ntwo\n```\n```rust,ignore\nthree\n```\n```sh\nfour\n```\n";
        assert_eq!(blocks(page, "sh"), ["one\ntwo\n", "four\n"]);
        assert_eq!(blocks(page, "rust,ignore"), ["three\n"]);
    }

    #[test]
    fn commands_are_told_from_what_they_print_and_from_headings() {
        let page = "# Title\n```console\n# one 1\nits output\n# two\n```\n```sh\n# no\n```\n";
        assert_eq!(root_commands(page), ["one 1", "two"]);
    }
}
