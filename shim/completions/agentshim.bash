# bash completion for agentshim(8). The words come from `agentshim complete`, of the agentshim in PATH: the word that is
# typed may name a program of somebody else's, and a key press must not run that.
_agentshim() {
    local word raw=
    local -a found=()
    COMPREPLY=()
    while IFS= read -r word; do
        if [[ $word == :files ]]; then
            compopt -o filenames 2>/dev/null && raw=1 # bash then quotes by itself
            while IFS= read -r word; do found+=("$word"); done < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")
        else
            found+=("$word")
        fi
    done < <(command agentshim complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    for word in "${found[@]}"; do
        [[ $raw ]] || printf -v word %q "$word"
        COMPREPLY+=("$word")
    done
}
complete -F _agentshim agentshim
