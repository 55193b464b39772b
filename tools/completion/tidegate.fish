# fish completion: the words come from --help, which prints the programs' own tables.

function __tidegate_help
    set -l words (commandline -opc)
    set -l program $words[1]
    for word in $words[2..-1]
        if not string match -q -- '-*' $word
            set -l help ($program $word --help 2>/dev/null)
            if string match -qr -- '^ +.*--help' $help
                printf '%s\n' $help
                return
            end
        end
    end
    $program --help 2>/dev/null
end

function __tidegate_words
    set -l words (commandline -opc)
    set -l help (__tidegate_help)
    set -l commands
    set -l described
    if string match -q -- '*COMMAND*' $help[1]
        for line in $help
            if string match -q -- 'Options*' $line
                break
            end
            set -l found (string match -r -- '^  ([a-z][a-z-]*) +(?:\[[^]]*\])? *(.*)$' $line)
            if test (count $found) -ge 3; and not string match -q -- 'tidegate*' $found[2]
                set -a commands $found[2]
                set -a described $found[2]\t$found[3]
            end
        end
    end
    for word in $words[2..-1]
        if contains -- $word $commands
            set -e described
        end
    end
    if not string match -q -- '-*' (commandline -ct)
        printf '%s\n' $described
        return
    end
    for line in $help
        set -l found (string match -r -- '^ {2,}(?:-., )?(--[a-z0-9-]+)(?: [^ ]+)? +(.*)$' $line)
        if test (count $found) -ge 3
            printf '%s\t%s\n' $found[2] $found[3]
        end
    end
end
