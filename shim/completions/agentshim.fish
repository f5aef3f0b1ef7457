# fish completion for agentshim(8). The words come from `agentshim complete`.
function __agentshim_complete
    set -l words (commandline -opc)
    set -l now (commandline -ct)
    # The one in PATH: the word that is typed may name a program of somebody else's.
    for word in (command agentshim complete $words[2..-1] "$now" 2>/dev/null)
        if test "$word" = :files
            __fish_complete_path "$now"
        else
            printf '%s\n' $word
        end
    end
end
complete -c agentshim -f -a '(__agentshim_complete)'
